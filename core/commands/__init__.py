"""The command line, one module per command: `add` declares its arguments, `run` executes it and returns its JSON."""
