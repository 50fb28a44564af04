"""This machine: what it is, how fast it measures, and what `doctor` advises."""
