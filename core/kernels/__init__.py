"""Multiplying on the CPU: how weights lie in memory, the kernels for each format, and which of them is used.

`quantized_weight`  QuantizedWeight: one linear's rows in a canonical form of which any range is a weight by itself
`native_library`    our own compiled library (native/*.c), found at run time, never required; `native_*` call its parts
`prepared_input`    HostInput: an input prepared once for all weights that read it
`matmul`            the candidates, ours and torch's, and HostMatmul, which calls the right one by rows of input
`autotune`          times the candidates on this machine and keeps the table of what won
`device_products`   the same products on a card
Importing this imports nothing.
"""
