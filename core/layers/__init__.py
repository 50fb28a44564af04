"""The parts of decoder layers: attention, norms, experts, KV cache, and entire layers fused on the CPU."""
