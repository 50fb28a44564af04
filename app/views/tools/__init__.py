"""The page of tool servers and the form for one of them."""
