"""Devices that compute beside the CPU: the seam (`base`), CUDA and ROCm (`cuda`), and a simulated one to test with.

Importing this imports nothing; `opening` makes the one that a plan names.
"""
