"""Conversations: the records, the store on disk, the session that asks the engine."""
