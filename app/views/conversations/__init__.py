"""The sidebar with the conversation list."""
