"""Conversations: the records, the store on disk, and the session that asks the engine."""
