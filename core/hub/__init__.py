"""The Hub: finding models, reading what they are, bringing them here, keeping them. No torch, no Qt.

`environment` says where things are (endpoint, cache, token file); `token` finds the token; `client` speaks HTTP and
keeps the token to its own host. `listing` is what the Hub knows of a repository, `needed` which files matter,
`remote_spec` the config and tensors read by range requests. `download` plans, `fetch` brings one file, `progress`
counts. `cache` is the layout on disk, `library` what is there: list, resolve, verify, remove, import. `commands` is
all of it on the command line. Importing this imports nothing.
"""
