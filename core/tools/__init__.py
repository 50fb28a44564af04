"""Tools of MCP servers: started, listed and called in a thread of their own; each failure is one sentence."""
