"""A server on loopback with the part of the Hugging Face Hub's API that regpt uses, uploads included.

It can inject errors.
"""

import hashlib
import json
import threading
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PAGE = 2  # entries per page of a listing; further pages are linked, as on the hub

Misbehaviour = Callable[["Handler", bytes], None]


class HubServer(ThreadingHTTPServer):
    """Serves `files` (path -> bytes) as the dataset or model `repository` at one commit."""

    daemon_threads = True

    def __init__(self, repository: str, files: dict[str, bytes], kind: str = "datasets") -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repository, self.files = repository, files
        self.api = f"/api/{kind}/{repository}"
        self.pages = f"/{repository}" if kind == "models" else f"/{kind}/{repository}"
        self.requests: list[tuple[str, str]] = []  # (path, Range header) of each download
        self.refusal: tuple[int, str] | None = None  # status and message, as for an expired token: (401, "Invalid …")
        self.exists = bool(files)
        self.visibility = ""  # with which a client created the repository
        self.token = "hf_of_the_tests"  # that may write
        self.licences = ("mit", "apache-2.0", "cc-by-4.0")  # that the validation of a model card knows
        self.commits: list[str] = []  # messages
        self.objects: dict[str, bytes] = {}  # uploaded files, by SHA-256
        self.misbehaviours: dict[str, list[Misbehaviour]] = {}  # for the next downloads of a path, in order

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *unused: object) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        api, pages = self.server.api, self.server.pages
        if self.server.refusal:
            status, message = self.server.refusal
            self.answer(status, b"{}", {"X-Error-Message": message})
        elif path in (f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
            self.answer_json({"id": self.server.repository, "sha": COMMIT, "siblings": []})
        elif path == f"{api}/tree/main":
            self.answer_json([self.entry(path) for path in self.server.files])
        elif path.startswith(f"{api}/tree/{COMMIT}"):
            self.list_files(path.removeprefix(f"{api}/tree/{COMMIT}").strip("/"))
        elif path.startswith(f"{pages}/resolve/{COMMIT}/"):
            self.send_file(path.split(f"/resolve/{COMMIT}/")[1])
        elif path.startswith((f"{api}/", f"{pages}/")):
            self.answer_error(404, "RevisionNotFound")
        else:
            self.answer_error(404, "RepoNotFound")

    def do_POST(self) -> None:
        body, server = self.rfile.read(int(self.headers["Content-Length"])), self.server
        path = urlsplit(self.path).path
        if server.refusal or self.headers.get("Authorization") != f"Bearer {server.token}":
            status, message = server.refusal or (401, "Invalid username or password.")
            self.answer(status, b"{}", {"X-Error-Message": message})
        elif path == "/api/validate-yaml":
            self.validate_card(json.loads(body)["content"])
        elif path == "/api/repos/create":
            self.create(json.loads(body))
        elif path == f"{server.api}/preupload/main":
            found = [
                {"path": one["path"], "uploadMode": "lfs" if one["size"] > 10_000 else "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            self.answer_json({"files": found})
        elif path == f"/{server.repository}.git/info/lfs/objects/batch":
            href = f"{server.address}/lfs/"
            objects = [
                {**one, "actions": {"upload": {"href": href + one["oid"]}}} for one in json.loads(body)["objects"]
            ]
            self.answer_json({"transfer": "basic", "objects": objects})
        elif path == f"{server.api}/commit/main":
            self.commit([json.loads(line) for line in body.splitlines()])
        else:
            self.answer_error(404, "RepoNotFound")

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.objects[hashlib.sha256(content).hexdigest()] = content
        self.answer(200, b"", {})

    def validate_card(self, content: str) -> None:
        """Refuse a card whose metadata the client cannot read, or whose licence is unknown, as the hub does."""
        from huggingface_hub import ModelCard

        licence = ModelCard(content).data.license
        if licence in (None, *self.server.licences):
            self.answer_json({"errors": [], "warnings": []})
        else:
            error = {"errors": [{"message": f'"license" must be one of {", ".join(self.server.licences)}'}]}
            self.answer(400, json.dumps(error).encode(), {"Content-Type": "application/json"})

    def create(self, asked: dict[str, str]) -> None:
        assert f"{asked['organization']}/{asked['name']}" == self.server.repository
        there = {"url": f"{self.server.address}/{self.server.repository}"}
        if self.server.exists:
            self.answer(409, json.dumps(there).encode(), {"Content-Type": "application/json"})
            return
        self.server.exists, self.server.visibility = True, asked.get("visibility", "")
        self.answer_json(there)

    def commit(self, lines: list[dict[str, Any]]) -> None:
        """Apply the lines of a commit; files of LFS are those that were uploaded before."""
        files = self.server.files
        for kind, value in [(line["key"], line["value"]) for line in lines]:
            if kind == "header":
                self.server.commits.append(value["summary"])
            elif kind == "file":
                files[value["path"]] = b64decode(value["content"])
            elif kind == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
            elif kind == "deletedFile":
                del files[value["path"]]
        page = f"{self.server.address}/{self.server.repository}/commit/{COMMIT}"
        self.answer_json({"success": True, "commitOid": COMMIT, "commitUrl": page, "hookOutput": ""})

    def do_HEAD(self) -> None:
        content = self.server.files[unquote(urlsplit(self.path).path).split(f"/resolve/{COMMIT}/")[1]]
        self.send_response(200)
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        for name, value in {"X-Repo-Commit": COMMIT, "ETag": etag, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()

    def list_files(self, folder: str) -> None:
        found = [path for path in self.server.files if not folder or path.startswith(f"{folder}/") or ".." in path]
        if not found:
            self.answer_error(404, "EntryNotFound")
            return
        first = int(urlsplit(self.path).query.partition("cursor=")[2] or 0)
        query = f"?recursive=true&cursor={first + PAGE}"
        link = f'<{self.server.address}{urlsplit(self.path).path}{query}>; rel="next"'
        more = {"Link": link} if first + PAGE < len(found) else {}
        self.answer_json([self.entry(path) for path in found[first : first + PAGE]], more)

    def entry(self, path: str) -> dict[str, object]:
        content = self.server.files[path]
        entry = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(path.encode()).hexdigest()}
        if path.endswith(".parquet"):
            sha256 = hashlib.sha256(content).hexdigest()
            return {**entry, "lfs": {"oid": sha256, "size": len(content), "pointerSize": 133}}
        return {**entry, "oid": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()}

    def send_file(self, path: str) -> None:
        wanted = self.headers.get("Range", "")
        self.server.requests.append((path, wanted))
        content = self.server.files[path]
        if misbehaviours := self.server.misbehaviours.get(path):
            misbehaviours.pop(0)(self, content)
            return
        first = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        self.wfile.write(content[first:])

    def answer_json(self, value: object, headers: dict[str, str] | None = None) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def answer_error(self, status: int, code: str) -> None:
        self.answer(status, b"{}", {"X-Error-Code": code})

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


# Misbehaviour


def error_500(handler: Handler, content: bytes) -> None:
    handler.answer(500, b"", {})


def wrong_bytes(handler: Handler, content: bytes) -> None:
    handler.answer(200, bytes(byte ^ 1 for byte in content), {})


def html_page(handler: Handler, content: bytes) -> None:
    handler.answer(200, b"<html>Sign in to this network</html>", {"Content-Type": "text/html"})


def short_body(handler: Handler, content: bytes) -> None:
    """Announce the whole length, send a third, close the connection."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 3])
    handler.wfile.flush()
    handler.close_connection = True


def half_and_then_silence(handler: Handler, content: bytes) -> None:
    """Send half of the body and keep the connection open until the client closes it."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])
    handler.wfile.flush()
    handler.rfile.read(1)
    handler.close_connection = True


def endless_body(handler: Handler, content: bytes) -> None:
    handler.send_response(200)
    handler.send_header("Connection", "close")
    handler.end_headers()
    try:
        for _ in range(200):
            handler.wfile.write(b"x" * 1_000_000)
    except OSError:
        pass
    handler.close_connection = True


@contextmanager
def served(repository: str, files: dict[str, bytes], kind: str = "datasets") -> Iterator[HubServer]:
    """Run a server of `files` in a thread."""
    server = HubServer(repository, files, kind)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
