"""GGUF files: read with bounds, by memory mapping, as a configuration, tensors by transformers' names and a tokenizer."""
