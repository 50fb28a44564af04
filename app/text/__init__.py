"""Markdown, formulas and source code, prepared for display while they stream."""
