"""What a decoder layer is computed by: attention, norms, experts, the KV cache, and whole layers on the CPU."""
