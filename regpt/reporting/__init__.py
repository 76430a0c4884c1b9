"""`regpt report`: the record of one run."""
