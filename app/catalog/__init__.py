"""Models on the Hub and on this disk, their downloads, and which of them suit this machine."""
