"""Tool servers in the window: their book on disk, the tools offered to models, and calls."""
