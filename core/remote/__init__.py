"""Models on other computers, or in other programs here: any server that speaks OpenAI's chat completions. No torch.

`endpoint` says where a model is, `connection` speaks HTTP, `engine` answers with the events of a local model, `check`
finds out which step of reaching a server fails.
"""
