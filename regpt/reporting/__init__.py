"""`regpt report`: the report of one run."""
