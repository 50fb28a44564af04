"""The page of tool servers and its forms."""
