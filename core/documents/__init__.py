"""Extracts the text of files that users attach, in a separate process. Independent of models and the window."""
