"""The main window and its frame: top bar, panes, notices, status line."""
