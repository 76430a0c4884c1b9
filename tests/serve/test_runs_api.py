"""The API of the runs: the list, one run, its files and report, comparisons, errors."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from regpt.tracking.events import Finished, Rollback
from regpt.tracking.journal import EventRecord, SkippedRecord
from regpt.tracking.rejections import Rejection, RejectionKind
from regpt.tracking.run import open_run
from regpt.tracking.status import state_of
from tests.helpers.compared_runs import edit_recipe
from tests.serve.conftest import TRIAL, MadeRun, sample, step, validation

OLD_RUNS = Path(__file__).parent.parent / "fixtures" / "version_0_1" / "runs"


def rows(client: Any) -> dict[str, Any]:
    return {row["name"]: row for row in client.get("/api/runs").json()["runs"]}


def error(answer: Any) -> dict[str, Any]:
    found = answer.json()["error"]
    assert set(found) == {"message", "type", "param", "code"} and found["message"]
    return dict(found)


def test_list_agrees_with_the_runs_that_regpt_runs_opens(root: Path, client: Any) -> None:
    for path in (TRIAL, TRIAL.with_name("trial-230126"), *OLD_RUNS.iterdir()):
        shutil.copytree(path, root / path.name)
    found = rows(client)
    assert len(found) == 4
    for name, row in found.items():
        run = open_run(root / name)
        assert (row["state"], row["step"], row["max_steps"]) == (
            state_of(run),
            run.history.step,
            run.recipe.run.max_steps,
        )
        assert row["tokens"] == run.history.steps[-1].tokens and row["loss"] == run.history.steps[-1].loss
        assert row["validation"]["loss"] == run.validation_loss
        score = run.hellaswag[-1] if run.hellaswag else None
        assert (row["hellaswag"] or {}).get("accuracy") == (score.accuracy if score else None)


def test_list_follows_a_run_that_grows_and_is_rewound(made: MadeRun, client: Any) -> None:
    assert rows(client)["a"]["step"] == 0
    made.train(1, 200)
    made.write(validation(200))
    assert (rows(client)["a"]["step"], rows(client)["a"]["loss"]) == (200, 9.8)
    assert rows(client)["a"]["tokens_per_second"] == pytest.approx(8192)
    made.resume(180)
    row = rows(client)["a"]
    assert row["step"] == 180 and row["validation"] is None
    made.stop(180)
    assert rows(client)["a"]["state"] == "stopped"


def test_list_of_a_journal_with_a_rewind_has_the_step_after_it(made: MadeRun, client: Any) -> None:
    made.train(1, 200)
    made.resume(180)
    assert (rows(client)["a"]["step"], rows(client)["a"]["loss"]) == (180, 9.82)


def test_list_reads_no_file_that_has_not_changed(
    made: MadeRun, root: Path, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = MadeRun(root, "b")
    made.train(1, 5)
    rows(client)
    opened: list[str] = []
    listening = True

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if listening and event == "open" and str(root) in str(arguments[0]):
            opened.append(Path(str(arguments[0])).name)

    sys.addaudithook(hook)
    rows(client)
    assert [name for name in opened if not name.endswith(".holder")] == []
    other.train(1, 1)
    opened.clear()
    rows(client)
    listening = False
    assert [name for name in opened if not name.endswith(".holder")] == ["journal.jsonl"]


def test_run_whose_recipe_is_damaged_is_listed_with_the_problem(root: Path, made: MadeRun, client: Any) -> None:
    (made.path / "recipe.toml").write_text("x = [")
    row = rows(client)["a"]
    assert row["state"] is None and "recipe.toml" in row["problem"]
    answer = client.get("/api/runs/a")
    assert answer.status_code == 422 and error(answer)["code"] == "run_unreadable"


def test_empty_folder_has_no_runs(client: Any) -> None:
    assert client.get("/api/runs").json()["runs"] == []


def test_run_has_status_results_samples_and_guard_events(made: MadeRun, client: Any) -> None:
    made.train(1, 2)
    spike = Rejection(kind=RejectionKind.LOSS_SPIKE, value=9.0, limit=5.0, deviations=20.0)
    made.write(
        validation(2),
        sample(2, "Once <b>upon</b>", "Once more"),
        SkippedRecord(step=3, tokens=12288, reason=spike, batch="", seconds=0.5),
        EventRecord(step=2, detail=Rollback(from_step=3, excluded_batches=[2]), at=2.0),
        step(3),
        step(4),
        SkippedRecord(step=5, tokens=20480, reason=spike, batch="", seconds=0.5),
        EventRecord(step=5, detail=Finished(), at=3.0),
    )
    found = client.get("/api/runs/a").json()
    status = found["status"]
    assert (status["state"], status["step"], status["is_over"], status["skipped"]) == ("finished", 5, True, 1)
    assert (status["validation"]["loss"], status["validation"]["standard_error"]) == (4.0, 0.25)
    assert found["samples"]["records"][0]["texts"] == ["Once <b>upon</b>", "Once more"]
    assert [one["event"] for one in found["events"]["records"]] == ["started", "rollback", "finished"]
    assert found["skipped"]["records"][0]["reason"] == str(spike)


def test_files_are_the_recipe_and_environment_as_they_are(made: MadeRun, client: Any) -> None:
    found = client.get("/api/runs/a/files").json()
    assert found["recipe"] == (TRIAL / "recipe.toml").read_text()
    assert json.loads(found["environment"]) == json.loads((TRIAL / "environment.json").read_text())
    assert found["has_report"] is False
    (made.path / "environment.json").unlink()
    assert client.get("/api/runs/a/files").json()["environment"] is None


def test_comparison_has_results_with_errors_and_differing_settings(root: Path, made: MadeRun, client: Any) -> None:
    other = MadeRun(root, "b")
    edit_recipe(other.path, "max_lr = 0.0018", "max_lr = 0.5")
    for run, loss in ((made, 4.0), (other, 3.5)):
        run.train(1, 3)
        run.write(validation(3, loss))
    found = client.get("/api/compare", params={"run": ["b", "a"]}).json()
    assert [(one["name"], one["validation"]["loss"]) for one in found["runs"]] == [("b", 3.5), ("a", 4.0)]
    assert found["settings"] == [{"name": "optimizer.max_lr", "values": ["0.5", "0.0018"]}]
    for names in (["a"], ["a"] * 9):
        answer = client.get("/api/compare", params={"run": names})
        assert answer.status_code == 400 and str(len(names)) in error(answer)["message"]


def test_unknown_run_is_refused_by_name(made: MadeRun, client: Any) -> None:
    for path in ("/api/runs/zz", "/api/runs/zz/files", "/runs/zz/report.html", "/api/compare?run=a&run=zz"):
        answer = client.get(path)
        assert answer.status_code == 404 and "zz" in error(answer)["message"]
        assert error(answer)["code"] == "run_not_found"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/static/nothing.js", 404),
        ("POST", "/api/runs", 405),
        ("DELETE", "/api/runs/a", 405),
        ("GET", "/api/compare", 400),
    ],
)
def test_error_has_one_json_form(made: MadeRun, client: Any, method: str, path: str, status: int) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    error(answer)


def test_fault_of_the_server_shows_no_detail(made: MadeRun, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr("regpt.serve.run_routes.summary_json", fail)
    answer = client.get("/api/runs")
    assert answer.status_code == 500 and error(answer)["type"] == "server_error" and "secret" not in answer.text


def test_health_answers(client: Any) -> None:
    assert client.get("/health").json() == {"status": "ok"}


def test_report_is_shown_with_its_own_style_and_nothing_else(made: MadeRun, client: Any) -> None:
    page = "<!doctype html><style>p { color: red }</style><p>x</p><script>alert(1)</script>"
    (made.path / "report.html").write_text(page)
    answer = client.get("/runs/a/report.html")
    assert answer.status_code == 200 and answer.text == page
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("sandbox;") and "default-src 'none'" in policy and "script-src" not in policy
    assert "unsafe" not in policy and "style-src 'sha256-" in policy
    assert client.get("/api/runs/a/files").json()["has_report"] is True


def test_serving_writes_nothing_and_locks_nothing(made: MadeRun, root: Path, client: Any) -> None:
    made.train(1, 3)
    made.write(validation(3))
    (made.path / "report.html").write_text("<p>")
    before = {path: path.stat().st_mtime_ns for path in sorted(root.rglob("*"))}
    written: list[str] = []
    listening = True

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if listening and event in ("open", "os.remove", "os.rename", "os.mkdir", "fcntl.flock", "fcntl.lockf"):
            flags = arguments[2] if event == "open" else os.O_WRONLY
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                written.append(f"{event} {arguments[0]}")

    sys.addaudithook(hook)
    for path in (
        "/",
        "/api/runs",
        "/api/runs/a",
        "/api/runs/a/files",
        "/runs/a/report.html",
        "/api/compare?run=a&run=a",
    ):
        assert client.get(path).status_code == 200, path
    listening = False
    assert written == []
    assert {path: path.stat().st_mtime_ns for path in sorted(root.rglob("*"))} == before
