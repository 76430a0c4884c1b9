"""Rehearse a run before it starts: `regpt doctor`."""
