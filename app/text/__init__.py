"""Markdown, formulas and source code, made ready for display while they stream."""
