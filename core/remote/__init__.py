"""Models on other computers or in other local programs: any server with OpenAI's chat completions API. No torch.

`endpoint`: where a model is. `connection`: HTTP. `engine`: answers with the same events as a local model. `check`:
finds which step of reaching a server fails.
"""
