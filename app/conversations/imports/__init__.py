"""Importing conversations from files: our own exports and those of other chat programs."""
