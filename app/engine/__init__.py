"""The worker thread that runs the engine, and the window's state of it."""
