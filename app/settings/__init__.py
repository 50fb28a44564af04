"""Settings and their declarations, colours and type."""
