"""Utilisation and speed, live: what is measured, and what it means."""
