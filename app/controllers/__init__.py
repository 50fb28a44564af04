"""Controllers: carry out what users ask for, between the views and the features."""
