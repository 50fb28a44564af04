"""Pictures for vision models: the processor's inputs, and the vision tower, which is opened at the first picture."""
