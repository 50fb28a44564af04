"""Conversations out of files: our own exports and those of other chat programs."""
