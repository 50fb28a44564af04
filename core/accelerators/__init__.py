"""Devices that compute beside the CPU: the seam (`base`), real cards (`card`), and a simulated one to plan and
measure with.

Importing this imports nothing; `opening` makes the one that a plan names.
"""
