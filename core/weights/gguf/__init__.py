"""GGUF files: bounds-checked parsing, transformers' configuration, tensors by transformers' names, tokenizer."""
