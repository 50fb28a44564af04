"""Basic widgets used by the other views."""
