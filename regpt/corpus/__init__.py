"""Corpora of text: which files are read, and how they are cut into chunks of documents."""
