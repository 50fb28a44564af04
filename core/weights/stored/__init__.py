"""Safetensors checkpoints that are already quantised: the meaning of their tensors, as one table of kinds."""
