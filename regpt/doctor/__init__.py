"""`regpt doctor`: a rehearsal of a run before the run."""
