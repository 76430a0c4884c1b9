"""Names and paths in a run directory. Every other module asks here."""

FOLDER = "evaluations"


RESULTS = "results.json"


VALIDATION = "validation"
