"""Models on the Hub and on this disk, their downloads, and how well they suit this machine."""
