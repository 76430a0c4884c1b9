"""Pass invalid settings to `train`, and settings that a resume may not change."""

from faults.laboratory import Laboratory, Result
from faults.process import run


def invalid_settings(lab: Laboratory, times: int) -> Result:
    before = sorted(path.name for path in lab.runs.iterdir())
    invalid = [
        "optimizer.max_lrr=1",
        "optimizer.max_lr=-1",
        "optimizer.max_lr=nan",
        "run.max_steps=ten",
        "data.total_batch_tokens=100",
        "run.time_limit=soon",
    ]
    for word in invalid:
        outcome = run(["train", str(lab.baseline.recipe), "--runs", str(lab.runs), "--name", "x", word])
        assert outcome.code == 2 and "Traceback" not in outcome.output and outcome.seconds < 2, outcome
    assert before == sorted(path.name for path in lab.runs.iterdir())
    lab.copy("other")
    for word in ("model.n_embd=32", "run.seed=2", "data.total_batch_tokens=512"):
        setting, value = word.split("=")
        outcome = run(["resume", "other", "--runs", str(lab.runs), "run.max_steps=50", word])
        assert outcome.code == 4 and setting in outcome.output and value in outcome.output, outcome.output
    assert run(["resume", "other", "--runs", str(lab.runs), "run.max_steps=42"]).code == 0
    lab.remove("other")
    return Result(
        "invalid settings; another model, seed or batch in a resume",
        len(invalid) + 3,
        "exit 2 in under 2 s; exit 4 with both values",
    )
