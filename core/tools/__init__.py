"""Tools of MCP servers: started, listed and called in a thread of their own; what fails is one sentence."""
