"""The Hugging Face Hub: searching, inspecting, downloading and storing models. No torch, no Qt.

`environment`: endpoint, cache and token file. `token`: finds the token. `client`: HTTP, sends the token only to its own
host. `listing`: what the Hub states about a repository. `file_selection`: which files are needed. `remote_spec`: config
and tensors by range requests. `download`: plans a download; `downloader`: runs it; `fetch_file`: fetches one file;
`progress`: counts bytes. `cache_layout`: the layout on disk; `installed`: the local models. Importing this imports
nothing.
"""
