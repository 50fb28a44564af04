"""Matrix products on the CPU: the memory layout of weights, the kernels for each storage format, and their selection.

`quantized_weight`  QuantizedWeight: a linear's weight in a canonical row layout; any range of rows is itself a weight
`native_library`    our compiled library (native/*.c), optional and looked up at run time; the `native_*` modules wrap
                    its calls
`prepared_input`    HostInput: an input converted once for all weights that read it
`matmul`            the candidate kernels, ours and torch's, and ChosenMatmul, which picks one by the number of rows
`autotune`          times the candidates on this machine and keeps a table of the winners
`device_products`   the same products on a GPU: by kernels of ours (`cuda_dequant`) or by torch's (`torch_products`)
Importing this package imports nothing.
"""
