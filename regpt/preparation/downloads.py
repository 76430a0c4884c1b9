"""Downloads from the Hugging Face hub in the background, each file continued after a kill and verified.

`hf_hub_download` starts a file again after a kill, because huggingface_hub 2.4 gives temporary files random names. The
function that continues a download, `http_get`, is therefore called here with a file of a fixed name.
"""

import errno
import hashlib
import shutil
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from regpt.base.errors import DataError, is_quota_error, writing_advice
from regpt.base.files import sha256_of_file
from regpt.base.hub_errors import first_line, is_network_error, plain_hub_errors

ATTEMPTS = 6  # per file
MAX_FILES = 2  # on the disk: the one being read and the next
FIRST_WAIT_SECONDS = 1.0  # before the second attempt; each later wait is twice as long
DISK_ERRORS = {"ENOSPC", "EDQUOT", "EACCES", "EROFS", "EPERM", "ENAMETOOLONG", "EIO", "EFBIG", "EMFILE"}


@dataclass(frozen=True)
class HubFile:
    """A file as the hub lists it."""

    path: str  # in the repository
    size: int  # bytes
    sha256: str  # of a large file; empty for one that git itself stores
    blob_id: str  # git's SHA-1

    def matches(self, path: Path) -> bool:
        """Return whether a local file has the size and the hash that the hub lists."""
        if path.stat().st_size != self.size:
            return False
        if self.sha256:
            return sha256_of_file(path) == self.sha256
        content = path.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == self.blob_id


@dataclass(frozen=True)
class Download:
    """A file of the hub, and the local path where it is put."""

    file: HubFile
    path: Path

    @property
    def partial_path(self) -> Path:
        return self.path.with_name(self.path.name + ".partial")

    def bytes_received(self) -> int:
        """Return the size of the partial file; 0 if it is missing.

        One system call: the download thread may rename the file at any moment.
        """
        try:
            return self.partial_path.stat().st_size
        except FileNotFoundError:
            return 0


class Downloads:
    """Downloads files one at a time in a thread. Leaving the block stops it and keeps partial files.

    `queue` holds the downloads not started yet. `started` holds those that run or lie on the disk until `release`.
    """

    def __init__(self, repository: str, commit: str) -> None:
        self.repository, self.commit = repository, commit
        self.stopped = threading.Event()
        self.thread: ThreadPoolExecutor | None = None
        self.queue: deque[Download] = deque()
        self.started: dict[Download, Future[None]] = {}

    def __enter__(self) -> "Downloads":
        self.stopped.clear()
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="downloads")
        return self

    def __exit__(self, *raised: object) -> None:
        self.stopped.set()
        self.queue.clear()
        self.started.clear()
        if self.thread is not None:
            self.thread.shutdown(wait=True, cancel_futures=True)
            self.thread = None

    def start_next(self) -> None:
        assert self.thread is not None
        download = self.queue.popleft()
        self.started[download] = self.thread.submit(self.fetch, download)

    def start_next_if_room(self) -> None:
        if self.queue and len(self.started) < MAX_FILES:
            self.start_next()

    def release(self, download: Download) -> None:
        """Make room for the next download: this file is not needed any more."""
        self.started.pop(download, None)
        if self.thread is not None:
            self.start_next_if_room()

    def fetch(self, download: Download) -> None:
        """Download a file and verify it. Raise DataError after `ATTEMPTS` failures, InterruptedError when stopped."""
        download.path.parent.mkdir(parents=True, exist_ok=True)
        if download.path.is_file() and download.file.matches(download.path):
            return
        problem = ""
        for attempt in range(ATTEMPTS):
            if attempt and self.stopped.wait(FIRST_WAIT_SECONDS * 2 ** (attempt - 1)):
                raise InterruptedError
            problem = self.attempt(download.file, download.partial_path)
            if not problem:
                download.partial_path.replace(download.path)
                return
        raise DataError(
            f"{self.repository}/{download.file.path}: download failed {ATTEMPTS} times ({problem})",
            "run the same command again later; downloaded files and finished shards are kept",
        )

    def attempt(self, file: HubFile, partial: Path) -> str:
        """Download the missing bytes. Return the problem, or an empty string; a file with wrong bytes is deleted."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers
        from huggingface_hub.utils.logging import set_verbosity_error

        set_verbosity_error()
        try:
            with plain_hub_errors(self.repository, self.commit), partial.open("ab") as out:
                if out.tell() > file.size:
                    out.truncate(0)
                http_get(
                    hf_hub_url(self.repository, file.path, repo_type="dataset", revision=self.commit),
                    out,
                    resume_size=out.tell(),
                    headers=build_hf_headers(),
                    expected_size=file.size,
                    tqdm_class=self.size_guard(out, file.size),
                )
        except Exception as error:
            if isinstance(error, OSError) and errno.errorcode.get(error.errno or 0) in DISK_ERRORS:
                free = "" if is_quota_error(error) else f"; {shutil.disk_usage(partial.parent).free:,} bytes are free"
                raise DataError(
                    f"{partial}: cannot be written ({error.strerror}){free}",
                    f"{writing_advice(error)}, or set another data.path; what is finished is kept",
                ) from None
            if not is_network_error(error):
                raise
            problem = first_line(error)
        else:
            problem = "" if file.matches(partial) else "the bytes do not match the checksum of the hub"
        if problem and partial.exists() and partial.stat().st_size >= file.size:
            partial.unlink()
        return problem

    def size_guard(self, out: IO[bytes], expected: int) -> Any:
        """Return a class that `http_get` uses as a progress bar: it stops a download on request or beyond its size."""
        stopped = self.stopped

        class SizeGuard:
            def __init__(self, *unused: Any, **settings: Any) -> None:
                pass

            def update(self, count: int) -> None:
                if stopped.is_set():
                    raise InterruptedError
                if out.tell() > expected:
                    raise OSError(f"the server sends more than the {expected:,} bytes that the hub lists")

            def close(self) -> None:
                pass

            def __enter__(self) -> "SizeGuard":
                return self

            def __exit__(self, *raised: object) -> None:
                pass

        return SizeGuard
