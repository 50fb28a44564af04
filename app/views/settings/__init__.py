"""Settings, the page on the graphics card, and About."""
