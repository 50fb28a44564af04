"""Multiplying on the CPU: how weights lie in memory, the kernels for each format, and which of them is used.

`weights`  QuantizedWeight: one linear's rows in a canonical, sliceable form (bf16, int8, int4)
`native`   our own compiled library (native/*.c), found at run time, never required
`inputs`   HostInput: an input prepared once for all weights that read it
`matmul`   the candidates, ours and torch's, and HostMatmul, which calls the right one by rows of input
`select`   times the candidates on this machine and keeps the table of what won
Importing this imports nothing.
"""
