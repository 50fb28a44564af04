"""Messages of the window outside of the chat."""
