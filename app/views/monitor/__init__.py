"""The live view: memory, split, speed and what-if."""
