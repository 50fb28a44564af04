"""Weights on disk: safetensors and packed caches read by memory mapping, and random ones of known shapes."""
