"""Which rows of which linear go where, and how fast that is: pure functions from records to a Plan. No torch."""
