"""The engine: reads a Hugging Face model, plans where its weights are placed, and answers. Independent of the window.

Data flow: `Request` -> `engine.chat` -> `tokenizer` renders ids -> `generate` (prefill, decode) over `model`
(transformers' own module tree, weights placed by plan) and `kv_cache` -> `sampler` -> `tokenizer` streams text ->
`Event`s. `planner` first decides a Plan, as data; the rest carries it out. Importing this imports nothing.
"""
