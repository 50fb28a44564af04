"""The settings dialog, the graphics card page, and the about box."""
