"""The live view: split, memory, speed, and what if."""
