"""Nobody reads a run whom the server's owner did not let in, and no request reads outside the runs."""

import os
from pathlib import Path
from typing import Any

import pytest

from regpt.base.errors import UserError
from regpt.serve.access import MOST_BODY_BYTES, Access, name_of
from regpt.serve.run_files import find_served_run
from regpt.serve.server import access_to, resolve
from tests.serve.conftest import MadeRun, client_of

TOKEN = "correct-horse-battery"
SECRET = "the secret of another folder"


def code_of(answer: Any) -> str:
    return str(answer.json()["error"]["code"])


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8000", "localhost:8000", "localhost", "LOCALHOST:1", "[::1]:8000", "[::1]"]
)
def test_host_of_this_machine_is_answered(made: MadeRun, client: Any, host: str) -> None:
    assert client.get("/api/runs", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example:8000", "", "::1"]
)
def test_host_of_another_name_is_refused(made: MadeRun, client: Any, host: str) -> None:
    """A page of evil.example whose name was made to point to 127.0.0.1 (DNS rebinding)."""
    for path in ("/", "/api/runs", "/health", "/static/app.js"):
        answer = client.get(path, headers={"host": host})
        assert answer.status_code == 403 and code_of(answer) == "host_not_allowed"


def test_name_of_a_host_has_no_port() -> None:
    assert [name_of(host) for host in ("A:1", "a", "[::1]:1", "[::1]", "a:b")] == ["a", "a", "[::1]", "[::1]", "a:b"]


def test_post_of_another_site_is_refused(client: Any) -> None:
    answer = client.post("/api/session", content="x", headers={"origin": "https://evil.example"})
    assert answer.status_code == 403 and code_of(answer) == "origin_not_allowed"
    answer = client.post("/api/session", content="x", headers={"origin": "http://127.0.0.1:8000"})
    assert answer.status_code == 401


@pytest.fixture
def guarded(root: Path, made: MadeRun) -> Any:
    return client_of(root, Access(None, TOKEN), "http://machine.example:8000")


def test_token_is_needed_for_everything_of_a_run(guarded: Any, made: MadeRun) -> None:
    (made.path / "report.html").write_text("<p>")
    paths = ["/api/runs", "/api/runs/a", "/api/runs/a/files", "/runs/a/report.html", "/api/compare?run=a&run=a"]
    for path in [*paths, "/v1/models"]:
        for headers in ({}, {"authorization": f"Bearer {TOKEN}x"}, {"authorization": TOKEN}, {"cookie": "x"}):
            answer = guarded.get(path, headers=headers)
            assert answer.status_code == 401 and code_of(answer) == "invalid_token", path
            assert answer.headers["www-authenticate"] == "Bearer"
    for path in paths:
        assert guarded.get(path, headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
    for path in ("/", "/health", "/static/app.js", "/api/session"):
        assert guarded.get(path).status_code == 200


def test_browser_gives_the_token_once_and_keeps_a_cookie(guarded: Any) -> None:
    assert guarded.post("/api/session", content="wrong").status_code == 401
    assert guarded.get("/api/runs").status_code == 401
    answer = guarded.post("/api/session", content=TOKEN)
    assert answer.status_code == 200
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "samesite=strict" in cookie.lower() and TOKEN not in cookie
    assert guarded.get("/api/runs").status_code == 200


def test_session_of_another_token_is_refused(root: Path, guarded: Any) -> None:
    other = client_of(root, Access(None, "another-token-0000"), "http://machine.example:8000")
    other.post("/api/session", content="another-token-0000")
    (value,) = other.cookies.values()
    (name,) = other.cookies.keys()
    assert guarded.get("/api/runs", headers={"cookie": f"{name}={value}"}).status_code == 401


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_address_of_others_without_a_token_is_refused_with_the_remedy(host: str) -> None:
    with pytest.raises(UserError, match=host.replace(".", r"\.")) as refused:
        access_to(resolve(host, 0), None)
    assert "--token" in refused.value.fix and "--host" in refused.value.fix
    assert access_to(resolve(host, 0), TOKEN) == Access(None, TOKEN)


@pytest.mark.parametrize("token", ["", "short", "ünïcödé-ünïcödé-ünïcödé"])
def test_token_that_is_easily_guessed_is_refused(token: str) -> None:
    for host in ("127.0.0.1", "0.0.0.0"):
        with pytest.raises(UserError, match=f"--token has {len(token)} characters"):
            access_to(resolve(host, 0), token)


def test_loopback_needs_no_token() -> None:
    for host in ("127.0.0.1", "localhost", "127.0.0.2"):
        access = access_to(resolve(host, 0), None)
        assert not access.token and access.hosts is not None and host in access.hosts


@pytest.mark.parametrize("path", ["/", "/api/runs", "/nothing", "/static/app.js"])
def test_every_answer_has_the_strict_policy(made: MadeRun, client: Any, path: str) -> None:
    headers = client.get(path).headers
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'") and "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"
    assert "access-control-allow-origin" not in headers


def test_large_body_is_refused(client: Any) -> None:
    answer = client.post("/api/session", content=b"x" * (MOST_BODY_BYTES + 1))
    assert answer.status_code == 413 and code_of(answer) == "request_too_large"
    assert client.post("/api/session", content=b"x" * MOST_BODY_BYTES).status_code == 401


# Files


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    MadeRun(tmp_path, "outside")
    for name in ("secret.txt", "report.html"):
        (folder / name).write_text(SECRET)
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "..%2foutside",
        "%2e%2e%2foutside",
        "..%5coutside",
        "a%2f..%2f..%2foutside",
        "%2fetc",
        "a%00",
        "a%2fcheckpoints",
    ],
)
def test_path_out_of_the_runs_is_not_found(made: MadeRun, outside: Path, client: Any, name: str) -> None:
    for path in (f"/api/runs/{name}", f"/api/runs/{name}/files", f"/runs/{name}/report.html", f"/static/{name}"):
        answer = client.get(path)
        assert answer.status_code == 404 and SECRET not in answer.text, path


@pytest.mark.parametrize("name", ["..", ".", "", "../outside", "a/../../outside", "/", "A", "a/checkpoints"])
def test_only_a_name_in_the_folder_is_a_run(root: Path, made: MadeRun, outside: Path, name: str) -> None:
    (made.path / "checkpoints").mkdir()
    assert find_served_run(root, name) is None and find_served_run(root, "a") == made.path


@pytest.mark.parametrize("file", ["recipe.toml", "environment.json", "journal.jsonl", "lock.holder", "report.html"])
def test_link_out_of_a_run_is_not_followed(made: MadeRun, outside: Path, client: Any, file: str) -> None:
    (made.path / file).unlink(missing_ok=True)
    (made.path / file).symlink_to(outside / "secret.txt")
    (row,) = client.get("/api/runs").json()["runs"]
    if file != "report.html":
        assert row["state"] is None and file in row["problem"]
    answers = [client.get(path) for path in ("/api/runs/a", "/api/runs/a/files", "/runs/a/report.html")]
    assert not any(SECRET in answer.text for answer in answers)
    assert answers[2].status_code == 422 and file in answers[2].json()["error"]["message"]


def test_link_to_a_folder_elsewhere_is_no_run(root: Path, outside: Path, client: Any) -> None:
    (root / "linked").symlink_to(outside)
    (row,) = client.get("/api/runs").json()["runs"]
    assert row["state"] is None and "linked" in row["problem"] and "--runs" not in row["name"]
    for path in ("/api/runs/linked", "/api/runs/linked/files", "/runs/linked/report.html"):
        answer = client.get(path)
        assert answer.status_code == 422 and SECRET not in answer.text


def test_link_inside_the_runs_is_followed(root: Path, made: MadeRun, client: Any) -> None:
    made.train(1, 3)
    (root / "newest").symlink_to(made.path)
    assert [row["step"] for row in client.get("/api/runs").json()["runs"]] == [3, 3]
    assert client.get("/api/runs/newest").json()["status"]["step"] == 3


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipe_in_place_of_a_file_does_not_block(made: MadeRun, client: Any) -> None:
    (made.path / "journal.jsonl").unlink()
    os.mkfifo(made.path / "journal.jsonl")
    (row,) = client.get("/api/runs").json()["runs"]
    assert "journal.jsonl" in row["problem"] and client.get("/api/runs/a").status_code == 422
