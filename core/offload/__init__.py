"""HeteGen's core: linears split between CPU and device, and the parameter manager that streams their rows."""
