"""Pictures for models that see: their bytes, the processor's inputs, and the tower that is opened at the first one."""
