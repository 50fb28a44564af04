"""The runtime for a graphics card: its state and its words."""
