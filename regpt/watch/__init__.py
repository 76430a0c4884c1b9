"""`regpt watch`: a live view of a run in a terminal."""
