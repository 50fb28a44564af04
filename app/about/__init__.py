"""About this program, its diagnostics, and what it does online."""
