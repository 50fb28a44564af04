"""Settings with their declarations, and the theme."""
