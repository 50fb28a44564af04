"""The operating system: folders, start, sleep, single instance, and the window's saved state."""
