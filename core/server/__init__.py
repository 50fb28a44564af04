"""The local server: OpenAI's and Anthropic's HTTP interfaces, each a converter onto the engine's one `Request`.

The way of a request: `security` (host, origin, key) -> `app` (routes) -> `schemas` (what was asked) -> `fair_queue`
(one engine, many clients) -> the engine's events -> one of `chat`, `completions`, `responses`, `messages`, which turn
them into a JSON object or, through `sse`, into a stream. Needs no torch: the engine stands behind `backend.Backend`.
"""
