"""Recipes of a user's own that are like another one: text, size, length, and the values that suit them."""
