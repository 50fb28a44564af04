"""What the window tells the user outside of the chat."""
