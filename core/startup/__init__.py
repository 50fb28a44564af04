"""What runs before torch and transformers are imported, so that a start takes seconds less."""
