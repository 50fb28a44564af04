"""What trials have in common: a module is called with what a guess says it takes, and may take something else."""

from __future__ import annotations

MISFITS = (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError)
"""What a module raises that takes other arguments, or has more or fewer of something, than was thought."""
