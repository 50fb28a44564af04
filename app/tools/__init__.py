"""Tool servers as the window keeps them: the book on the disk, what models are offered, calls and their answers."""
