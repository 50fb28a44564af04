"""Languages: translated texts, patterns of the engine's sentences, numbers and units."""
