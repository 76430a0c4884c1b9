"""Multiple-choice tasks: their items, and how items are packed into rows."""
