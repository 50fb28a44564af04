"""Languages: translated texts, the engine's sentences, numbers and units."""
