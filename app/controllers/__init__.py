"""What a wish of the user sets in motion: between views and features."""
