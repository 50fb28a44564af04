"""The Hub: finding models, reading what they are, bringing them here, keeping them. No torch, no Qt.

`environment` says where things are (endpoint, cache, token file); `token` finds the token; `client` speaks HTTP and
keeps the token to its own host. `listing` is what the Hub knows of a repository, `file_selection` which files matter,
`remote_spec` the config and tensors read by range requests. `download` plans, `downloader` runs it, `fetch_file` brings
one file, `progress` counts. `cache_layout` is the layout on disk, `installed` what is there. Importing this imports
nothing.
"""
