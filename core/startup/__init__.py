"""What runs before torch and transformers are imported, to shorten the start by seconds."""
