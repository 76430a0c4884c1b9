"""The JSON API of the runs, and their reports. Requests only read; no file of a run is opened for writing."""

import base64
import hashlib
import re
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from regpt.base.errors import UserError
from regpt.serve.errors import ApiError, ErrorType, invalid_request, not_found
from regpt.serve.run_files import check_file, check_run, find_served_run, read_text
from regpt.serve.run_json import comparison_json, summary_json, to_bytes
from regpt.serve.summaries import RunSummaries
from regpt.serve.updates import Cursor, FollowedRuns
from regpt.tracking.layout import RunPaths

MOST_COMPARED = 8
MOST_REPORT_BYTES = 50_000_000
# A report is one file with its own style. As a run may come from a stranger, nothing in it may run or load anything.
REPORT_POLICY = "sandbox; default-src 'none'; img-src data:; style-src {}; base-uri 'none'; form-action 'none'"


def run_routes(root: Path) -> APIRouter:
    """Return the routes for the runs in the folder `root`."""
    router = APIRouter()
    summaries, followed = RunSummaries(root), FollowedRuns(root)

    @router.get("/api/runs")
    def list_runs() -> Response:
        return json_response({"folder": str(root), "runs": [summary_json(one) for one in summaries.list()]})

    @router.get("/api/runs/{name}")
    def update_run(name: str, cursor: str = "") -> Response:
        try:
            known = Cursor.parse(cursor)
        except ValueError:
            raise invalid_request(f"'{cursor[:80]}' is not a cursor of this server", "cursor") from None
        with unreadable(name):
            return json_response(followed.update(served_run(root, name), known))

    @router.get("/api/compare")
    def compare_runs(run: Annotated[list[str], Query()]) -> Response:
        if not 2 <= len(run) <= MOST_COMPARED:
            raise invalid_request(f"{len(run)} runs are named; name 2 to {MOST_COMPARED}", "run")
        statuses = []
        for name in run:
            with unreadable(name):
                statuses.append(followed.status(served_run(root, name)))
        return json_response(comparison_json(statuses))

    @router.get("/api/runs/{name}/files")
    def files_of_run(name: str) -> Response:
        run = served_run(root, name)
        with unreadable(name):
            check_run(root, run)
            return json_response(files_json(run))

    @router.get("/runs/{name}/report.html")
    def report_of_run(name: str) -> Response:
        run = served_run(root, name)
        with unreadable(name):
            check_run(root, run)
            return report_response(run)

    return router


def served_run(root: Path, name: str) -> Path:
    """Return the directory of a run. Raises ApiError without a run of this name."""
    run = find_served_run(root, name)
    if run is None:
        raise not_found(f"there is no run '{name}'", "run_not_found")
    return run


def files_json(run: Path) -> dict[str, Any]:
    """Return the texts of the run's small files."""
    paths = RunPaths(run)
    return {
        "recipe": read_text(run, paths.recipe),
        "environment": read_text(run, paths.environment),
        "has_report": check_file(run, paths.html_report),
    }


def report_response(run: Path) -> Response:
    """Return the run's report as it lies on the disk. Raises ApiError where it is missing or huge."""
    report = RunPaths(run).html_report
    if not check_file(run, report):
        raise not_found(f"the run '{run.name}' has no report.html; `regpt report {run.name} --html` writes it")
    with report.open("rb") as file:
        content = file.read(MOST_REPORT_BYTES + 1)
    if len(content) > MOST_REPORT_BYTES:
        raise not_found(f"report.html of '{run.name}' is larger than {MOST_REPORT_BYTES:,} bytes", "report_too_large")
    policy = {"content-security-policy": report_policy(content)}
    return Response(content, media_type="text/html; charset=utf-8", headers=policy)


class unreadable:
    """Turn a run's UserError into the server's answer."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (UserError, OSError)):
            text = str(error) if isinstance(error, UserError) else error.strerror
            raise ApiError(422, ErrorType.INVALID_REQUEST, "run_unreadable", f"run '{self.name}': {text}") from None


def report_policy(page: bytes) -> str:
    """Return the content security policy of a report: nothing but its own style, by its hash, and images as data."""
    style = re.search(rb"<style>(.*?)</style>", page, re.DOTALL)
    allowed = f"'sha256-{base64.b64encode(hashlib.sha256(style[1]).digest()).decode()}'" if style else "'none'"
    return REPORT_POLICY.format(allowed)


def json_response(value: object) -> Response:
    return Response(to_bytes(value), media_type="application/json")
