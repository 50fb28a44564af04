"""The command line, one module per command: `add` declares its arguments, `run` does it and returns the JSON object."""
