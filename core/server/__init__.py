"""The local server: OpenAI's and Anthropic's HTTP APIs, each converted to the engine's one `Request`.

The path of a request: `security` (host, origin, key) -> `app` (routes) -> `schemas` (parsing) -> `fair_queue` (one
engine, many clients) -> the engine's events -> one of `chat`, `completions`, `responses`, `messages`, which convert
them to a JSON object or, through `sse`, to a stream. Needs no torch: the engine is behind `backend.Backend`.
"""
