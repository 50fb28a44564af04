"""The engine: reads a Hugging Face model, plans where its weights live, and answers. Knows nothing of windows.

The way of the data: `Request` -> `engine.chat` -> `tokenizer` renders ids -> `generate` (prefill, decode) over
`model` (transformers' own module tree; weights by plan) and `kv_cache` -> `sampler` -> `tokenizer` streams text ->
`Event`s. A Plan is decided first, as data, by `planner`; the rest carries it out. Importing this imports nothing.
"""
