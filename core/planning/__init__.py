"""Placement of each linear's rows and its predicted speed: pure functions from records to a Plan, without torch."""
