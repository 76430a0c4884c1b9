"""`regpt compare`: several models side by side."""
