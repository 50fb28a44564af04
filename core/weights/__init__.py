"""Weights on disk: memory-mapped safetensors and GGUF files, caches of converted weights, and random weights."""
