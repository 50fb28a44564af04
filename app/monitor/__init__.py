"""Live utilisation and speed: what is measured, and what limits it."""
