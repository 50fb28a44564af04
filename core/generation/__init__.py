"""From messages to token ids and back to text: tokenizer, sampler, context window, decode loop."""
