"""Text generation: chat templates and tokenizer, context window, sampler, speculative decoding, decode loop."""
