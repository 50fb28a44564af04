"""Safetensors checkpoints that are quantised already: what their tensors mean, as one table of kinds."""
