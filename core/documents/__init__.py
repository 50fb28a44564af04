"""Text out of the files that users attach, found in a process of its own. Knows no models and no windows."""
