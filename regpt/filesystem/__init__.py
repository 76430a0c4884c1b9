"""File locks, and what a file system can do."""
