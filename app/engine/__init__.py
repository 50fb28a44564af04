"""The worker thread that runs the engine, and the state that the window keeps of it."""
