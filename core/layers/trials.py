"""The errors of trial calls: a module is called with guessed arguments, and may take different ones."""

from __future__ import annotations

MISFITS = (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError)
"""Errors of a module that takes other arguments than guessed, or whose attributes differ in number or kind."""
