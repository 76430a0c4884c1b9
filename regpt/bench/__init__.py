"""What this machine achieves with a recipe, measured in a minute with synthetic tokens."""
