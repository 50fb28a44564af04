"""Transcript and composer."""
