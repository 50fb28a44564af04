"""Widgets that the other views are made of."""
