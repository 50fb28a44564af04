"""GGUF files: read with bounds: a configuration, tensors by transformers' names, a tokenizer."""
