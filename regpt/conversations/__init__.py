"""Conversations: read, encoded by a chat template, and packed into rows with a loss mask."""
