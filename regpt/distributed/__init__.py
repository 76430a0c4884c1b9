"""Ranks that train together: process groups, collectives, messages, signals, lost ranks."""
