"""A loaded model in use: loading, one reply, re-planning while memory changes, what would fit."""
