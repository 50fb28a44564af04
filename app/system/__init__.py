"""The operating system's side: folders, start, sleep, a single instance, the window's place."""
