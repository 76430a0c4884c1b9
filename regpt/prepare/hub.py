"""Text from the Hugging Face hub: a data set's files at one revision, fetched one ahead of the work, each verified.

`huggingface_hub` lists and downloads. Its `hf_hub_download` begins a file anew after a kill (2.4 gives temporary files
random names), so the function that continues one, `http_get`, is called here with a file that is known by name.
"""

import errno
import hashlib
import shutil
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

from regpt.base.errors import DataError
from regpt.base.files import sha256_of_file
from regpt.base.hub_errors import first_line, is_network_error, plain_hub_errors
from regpt.prepare.corpora import Corpus
from regpt.prepare.progress import PreparationProgress
from regpt.prepare.sections import Chunk, FilePart, file_kind

PREFIX = "hub:"
ATTEMPTS = 6  # at one file
AT_ONCE = 2  # files on the disk: one in work and one ahead
FIRST_WAIT_SECONDS = 1.0  # before the second attempt; each later one waits twice as long
TROUBLE_HERE = {errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EPERM, errno.ENAMETOOLONG, errno.EIO, errno.EFBIG}
PARQUET_TEXT_RATIO = 1.6  # bytes of text in a byte of FineWeb-Edu's parquet files, which hold other columns too


@dataclass(frozen=True)
class HubFile:
    """What the hub says of a file."""

    path: str  # in the repository
    size: int
    sha256: str  # of a large file; empty for one that git itself keeps
    blob_id: str  # git's SHA-1

    def is_whole(self, path: Path) -> bool:
        """Whether a local file has the content that the hub promised."""
        if path.stat().st_size != self.size:
            return False
        if self.sha256:
            return sha256_of_file(path) == self.sha256
        content = path.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == self.blob_id


@dataclass(frozen=True)
class HubPart:
    """A file of the hub and the place where it is put for its turn, or to stay."""

    file: HubFile
    path: Path
    text_column: str
    keep: bool
    downloads: "Downloads" = field(compare=False)

    @property
    def name(self) -> str:
        return self.file.path

    @property
    def size(self) -> int:
        return self.file.size

    @property
    def likely_text_bytes(self) -> float:
        here = FilePart(self.path, self.text_column)
        return here.likely_text_bytes if self.path.is_file() else self.size * PARQUET_TEXT_RATIO

    def fingerprint(self) -> list[Any]:
        return [self.name, self.size, self.file.sha256 or self.file.blob_id]

    def chunks(self) -> Iterator[Chunk]:
        return FilePart(self.path, self.text_column).chunks()

    def check_readable(self, documents: int, refused: Counter[str]) -> None:
        FilePart(self.path, self.text_column).check_readable(documents, refused)

    def cleanup(self) -> None:
        if not self.keep:
            self.path.unlink(missing_ok=True)
        self.downloads.released(self)


def open_hub(source: str, revision: str, text_column: str, folder: Path, keep: bool) -> Corpus:
    """The files that 'hub:OWNER/NAME' or 'hub:OWNER/NAME/FOLDER' names, in the order of their names.

    They will be put into `folder`, and stay there with `keep`. Raises DataError where the hub cannot be reached, does
    not know them, or offers names that lead out of the folder.
    """
    repository, inside = split_source(source)
    commit, files = list_files(repository, inside, revision or "main")
    found = [f for f in files if file_kind(PurePosixPath(f.path))]
    tables = [f for f in found if file_kind(PurePosixPath(f.path)) != "text"]
    found = tables or found  # beside tables, text is what is written about them
    if not found:
        raise DataError(
            f"data.source = '{source}': nothing there at revision {commit[:12]} that regpt reads",
            f"look at https://huggingface.co/datasets/{repository}/tree/{commit} and name a folder of it",
        )
    found.sort(key=lambda f: PurePosixPath(f.path).parts)
    listed = [{"name": f.path, "bytes": f.size, "sha256": f.sha256} for f in found]
    downloads = Downloads(repository, commit)
    return HubCorpus(
        f"{repository}{'/' + inside if inside else ''} at {commit[:12]}",
        tuple(HubPart(f, folder / f.path, text_column, keep, downloads) for f in found),
        {"repository": repository, "revision": commit, "files": listed},
        downloads=downloads,
    )


def split_source(source: str) -> tuple[str, str]:
    """('OWNER/NAME', 'FOLDER/…') of a source that begins with 'hub:'."""
    words = source.removeprefix(PREFIX).strip("/").split("/")
    if len(words) < 2 or not all(words) or any(word in (".", "..") for word in words):
        raise DataError(
            f"data.source = '{source}': is no name on the hub", "write hub:OWNER/NAME or hub:OWNER/NAME/FOLDER"
        )
    return "/".join(words[:2]), "/".join(words[2:])


def list_files(repository: str, inside: str, revision: str) -> tuple[str, list[HubFile]]:
    """(commit, every file below a folder) at a revision."""
    from huggingface_hub import HfApi, errors
    from huggingface_hub.hf_api import RepoFile

    api = HfApi()
    try:
        with plain_hub_errors(repository, revision):
            commit = revision if is_commit(revision) else api.dataset_info(repository, revision=revision).sha or ""
            entries = list(
                api.list_repo_tree(repository, inside or None, recursive=True, revision=commit, repo_type="dataset")
            )
    except DataError:
        raise
    except errors.HFValidationError as error:
        raise DataError(f"{repository}: is no name on the hub ({first_line(error)})", "mend data.source") from None
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise DataError(
            f"{repository}: the hub answers with something that is no list of files ({first_line(error)})",
            "look at HF_ENDPOINT, or fetch the files elsewhere and set data.source to their folder",
        ) from None
    except Exception as error:
        if not is_network_error(error):
            raise
        raise DataError(
            f"{repository}: the hub could not be reached ({first_line(error)})",
            "look at the network, or fetch the files elsewhere and set data.source to their folder",
        ) from None
    files = [
        HubFile(entry.path, entry.size, entry.lfs.sha256 if entry.lfs else "", entry.blob_id)
        for entry in entries
        if isinstance(entry, RepoFile)
    ]
    for file in files:
        texts = (file.path, file.sha256, file.blob_id)
        if type(file.size) is not int or file.size < 0 or not all(type(text) is str for text in texts):
            raise DataError(f"{repository}: the hub's list of files is not whole", "look at HF_ENDPOINT")
    for file in files:
        parts = PurePosixPath(file.path).parts
        if (
            "\\" in file.path
            or ":" in file.path
            or ".." in parts
            or not parts
            or PurePosixPath(file.path).is_absolute()
        ):
            raise DataError(
                f"{repository}: the hub offers a file named '{file.path}', which would lie outside the folder",
                "do not use this data set, or this HF_ENDPOINT",
            )
    return commit, files


def is_commit(revision: str) -> bool:
    return len(revision) == 40 and all(digit in "0123456789abcdef" for digit in revision)


@dataclass(frozen=True)
class HubCorpus(Corpus):
    parts: tuple[HubPart, ...]
    downloads: "Downloads" = field(kw_only=True)

    def bytes_to_fetch(self, first: int) -> int:
        parts = [part for part in self.parts[first:] if not part.path.is_file()]
        if any(part.keep for part in parts):
            return sum(part.size for part in parts)
        return sum(sorted(part.size for part in parts)[-AT_ONCE:])

    def fetched(self, numbers: Iterable[int], progress: PreparationProgress) -> Iterator[HubPart]:
        """The parts of these numbers in turn. While one is worked on, the next is fetched, and no more than that."""
        parts = [self.parts[number] for number in numbers]
        with self.downloads as downloads:
            downloads.ahead.extend(parts)
            for part in parts:
                if part not in downloads.begun:  # its turn has come before the one two before it was released
                    downloads.begin_next()
                self.wait_for(downloads.begun[part], part, progress)
                downloads.begin_if_there_is_room()
                yield part

    @staticmethod
    def wait_for(fetched: "Future[None]", part: HubPart, progress: PreparationProgress) -> None:
        partial = partial_of(part.path)
        while not fetched.done():
            progress.raise_if_stopped()
            progress.fetching(part.name, bytes_in(partial), part.size)
            threading.Event().wait(0.05)
        fetched.result()


def partial_of(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def bytes_in(path: Path) -> int:
    """Return the size of a file in bytes; 0 where it is missing.

    One system call: the download thread may rename the file at any moment.
    """
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


class Downloads:
    """Fetches files in the background, one at a time. Leaving the block stops it; what was fetched of a file stays.

    Parts wait in `ahead`; those in `begun` are being fetched, or lie there until they are released.
    """

    def __init__(self, repository: str, commit: str) -> None:
        self.repository, self.commit = repository, commit
        self.stopped = threading.Event()
        self.thread: ThreadPoolExecutor | None = None
        self.ahead: deque[HubPart] = deque()
        self.begun: dict[HubPart, Future[None]] = {}

    def __enter__(self) -> "Downloads":
        self.stopped.clear()
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="downloads")
        return self

    def __exit__(self, *raised: object) -> None:
        self.stopped.set()
        self.ahead.clear()
        self.begun.clear()
        if self.thread is not None:
            self.thread.shutdown(wait=True, cancel_futures=True)
            self.thread = None

    def begin_next(self) -> None:
        assert self.thread is not None
        part = self.ahead.popleft()
        self.begun[part] = self.thread.submit(self.fetch, part.file, part.path)

    def begin_if_there_is_room(self) -> None:
        if self.ahead and len(self.begun) < AT_ONCE:
            self.begin_next()

    def released(self, part: HubPart) -> None:
        self.begun.pop(part, None)
        if self.thread is not None:
            self.begin_if_there_is_room()

    def fetch(self, file: HubFile, path: Path) -> None:
        """Make `path` the file, whole and verified, in a bounded number of attempts.

        Raises DataError when they are used up.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() and file.is_whole(path):
            return
        partial = partial_of(path)
        problem = ""
        for attempt in range(ATTEMPTS):
            if attempt and self.stopped.wait(FIRST_WAIT_SECONDS * 2 ** (attempt - 1)):
                raise InterruptedError
            problem = self.attempt(file, partial)
            if not problem:
                partial.replace(path)
                return
        raise DataError(
            f"{self.repository}/{file.path}: could not be fetched in {ATTEMPTS} attempts ({problem})",
            "run the same command again later; what was fetched and prepared is kept",
        )

    def attempt(self, file: HubFile, partial: Path) -> str:
        """Fetch what is missing. Returns what went wrong, or nothing; wrong bytes are thrown away."""
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
                    tqdm_class=self.counter(out, file.size),
                )
        except Exception as error:
            if isinstance(error, OSError) and error.errno in TROUBLE_HERE:
                free = shutil.disk_usage(partial.parent).free
                raise DataError(
                    f"{partial}: cannot be written ({error.strerror}); {free:,} bytes are free",
                    "make room or name another data.path; what was fetched and prepared is kept",
                ) from None
            if not is_network_error(error):
                raise
            problem = first_line(error)
        else:
            problem = "" if file.is_whole(partial) else "the bytes are not those that the hub's checksum promises"
        if problem and partial.exists() and partial.stat().st_size >= file.size:
            partial.unlink()
        return problem

    def counter(self, out: IO[bytes], promised: int) -> Any:
        """What `http_get` takes for a progress bar: it ends a download when asked, and one that does not end."""
        stopped = self.stopped

        class Counter:
            def __init__(self, *unused: Any, **settings: Any) -> None:
                pass

            def update(self, count: int) -> None:
                if stopped.is_set():
                    raise InterruptedError
                if out.tell() > promised:
                    raise OSError(f"the server sends more than the {promised:,} bytes that the hub promises")

            def close(self) -> None:
                pass

            def __enter__(self) -> "Counter":
                return self

            def __exit__(self, *raised: object) -> None:
                pass

        return Counter
