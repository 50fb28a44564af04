"""State and words of the graphics card page."""
