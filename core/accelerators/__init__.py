"""Devices that compute beside the CPU: the interface (`base`), real cards (`card`), and a simulated one for planning
and tests.

Importing the package imports none of them; `factory` opens the one that a plan names.
"""
