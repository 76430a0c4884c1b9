"""Text from the Hugging Face hub: the files of a dataset at one revision, listed here and downloaded by `downloads`."""

import re
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from regpt.base.errors import DataError
from regpt.base.hub_errors import first_line, is_network_error, plain_hub_errors, unreachable
from regpt.corpus.chunks import TextChunk
from regpt.corpus.corpora import Corpus
from regpt.corpus.notes import notes_about
from regpt.corpus.progress import PreparationProgress
from regpt.corpus.selection import left_out_record, select_files
from regpt.corpus.text_files import FilePart
from regpt.preparation.downloads import MAX_FILES, Download, Downloads, HubFile

PREFIX = "hub:"
UNUSABLE = re.compile(r'^(con|prn|aux|nul|com\d|lpt\d)(\.|$)|[<>"|?*\x00-\x1f]|[. ]$', re.IGNORECASE)  # on Windows
PARQUET_TEXT_RATIO = 1.6  # bytes of text per byte of FineWeb-Edu's parquet files, which hold other columns too


@dataclass(frozen=True)
class HubPart:
    """A file of the hub. It is deleted after it was read, unless `keep`."""

    download: Download
    text_column: str
    keep: bool
    downloads: Downloads = field(compare=False)
    separator: str = ""
    behind_words: bool = False  # where a document may be cut; see `regpt/corpus/long_texts.py`

    @property
    def path(self) -> Path:
        return self.download.path

    @property
    def local(self) -> FilePart:
        return FilePart(self.path, self.text_column, self.separator, self.behind_words)

    @property
    def name(self) -> str:
        return self.download.file.path

    @property
    def size(self) -> int:
        return self.download.file.size

    @property
    def likely_text_bytes(self) -> float:
        return self.local.likely_text_bytes if self.path.is_file() else self.size * PARQUET_TEXT_RATIO

    def fingerprint(self) -> list[Any]:
        return [self.name, self.size, self.download.file.sha256 or self.download.file.blob_id]

    def chunks(self) -> Iterator[TextChunk]:
        return self.local.chunks()

    def check_readable(self, documents: int, refused: Counter[str]) -> None:
        self.local.check_readable(documents, refused)

    def cleanup(self) -> None:
        if not self.keep:
            self.path.unlink(missing_ok=True)
        self.downloads.release(self.download)


@dataclass(frozen=True)
class HubCorpus(Corpus):
    """Files of the hub in the order of their names. While one is read, the next is downloaded."""

    parts: tuple[HubPart, ...]
    downloads: Downloads = field(kw_only=True)

    def bytes_to_fetch(self, first: int) -> int:
        parts = [part for part in self.parts[first:] if not part.path.is_file()]
        if any(part.keep for part in parts):
            return sum(part.size for part in parts)
        return sum(sorted(part.size for part in parts)[-MAX_FILES:])

    def fetched(self, numbers: Iterable[int], progress: PreparationProgress) -> Iterator[HubPart]:
        parts = [self.parts[number] for number in numbers]
        with self.downloads as downloads:
            downloads.queue.extend(part.download for part in parts)
            for part in parts:
                if part.download not in downloads.started:  # the two parts before it are not released yet
                    downloads.start_next()
                self.wait_for(downloads.started[part.download], part, progress)
                downloads.start_next_if_room()
                yield part

    @staticmethod
    def wait_for(downloaded: "Future[None]", part: HubPart, progress: PreparationProgress) -> None:
        while not downloaded.done():
            progress.raise_if_stopped()
            progress.fetching(part.name, part.download.bytes_received(), part.size)
            threading.Event().wait(0.05)
        downloaded.result()


def open_hub(source: str, revision: str, text_column: str, folder: Path, keep: bool, separator: str = "") -> HubCorpus:
    """Open the files that 'hub:OWNER/NAME' or 'hub:OWNER/NAME/FOLDER' names, at a branch, tag or commit.

    They will be downloaded to `folder`, and stay there with `keep`. Raise DataError if the hub cannot be reached, has
    no such files, or lists a path outside the folder.
    """
    repository, inside = split_source(source)
    commit, files = list_files(repository, inside, revision or "main")
    of_path = {PurePosixPath(file.path.removeprefix(f"{inside}/")): file for file in files}
    selection = select_files(of_path)
    found = [of_path[PurePosixPath(path)] for path in selection.chosen]
    if not found:
        raise DataError(
            f"data.source = '{source}': no files that regpt can read at revision {commit[:12]}",
            f"choose a folder listed at https://huggingface.co/datasets/{repository}/tree/{commit}",
        )
    downloads = Downloads(repository, commit)
    return HubCorpus(
        f"{repository}{'/' + inside if inside else ''} at {commit[:12]}",
        tuple(HubPart(download, text_column, keep, downloads, separator) for download in local_paths(found, folder)),
        {
            "repository": repository,
            "revision": commit,
            "files": [{"name": f.path, "bytes": f.size, "sha256": f.sha256} for f in found],
            **left_out_record(selection),
        },
        notes=tuple(notes_about(selection)),
        downloads=downloads,
    )


def local_paths(files: list[HubFile], folder: Path) -> Iterator[Download]:
    """Yield where each file is put: below its own name, or a number where a disk may not tell that name from another.

    On a disk that ignores case, the next download would otherwise replace the file that is being read. Windows has
    names that no file can have.
    """
    seen: set[str] = set()
    for number, file in enumerate(files):
        path = PurePosixPath(file.path)
        is_usable = file.path.casefold() not in seen and not any(UNUSABLE.search(part) for part in path.parts)
        seen.add(file.path.casefold())
        yield Download(file, folder / file.path if is_usable else folder / f"file-{number:06d}{''.join(path.suffixes)}")


def split_source(source: str) -> tuple[str, str]:
    """Split 'hub:OWNER/NAME/FOLDER' into ('OWNER/NAME', 'FOLDER'). Raise DataError if it has another form."""
    words = source.removeprefix(PREFIX).strip("/").split("/")
    if len(words) < 2 or not all(words) or any(word in (".", "..") for word in words):
        raise DataError(
            f"data.source = '{source}': not a dataset on the hub", "write hub:OWNER/NAME or hub:OWNER/NAME/FOLDER"
        )
    return "/".join(words[:2]), "/".join(words[2:])


def list_files(repository: str, inside: str, revision: str) -> tuple[str, list[HubFile]]:
    """Return the commit of a revision, and every file below the folder `inside`."""
    try:
        with plain_hub_errors(repository, revision):
            from huggingface_hub import HfApi, errors
            from huggingface_hub.hf_api import RepoFile

            api = HfApi()
            commit = revision if is_commit(revision) else api.dataset_info(repository, revision=revision).sha or ""
            entries = list(
                api.list_repo_tree(repository, inside or None, recursive=True, revision=commit, repo_type="dataset")
            )
    except DataError:
        raise
    except errors.HFValidationError as error:
        raise DataError(f"{repository}: not a dataset name ({first_line(error)})", "correct data.source") from None
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise DataError(
            f"{repository}: the hub did not send a list of files ({first_line(error)})",
            "check HF_ENDPOINT, or download the files yourself and set data.source to their folder",
        ) from None
    except Exception as error:
        if not is_network_error(error):
            raise
        raise unreachable(repository, error) from None
    files = [
        HubFile(entry.path, entry.size, entry.lfs.sha256 if entry.lfs else "", entry.blob_id)
        for entry in entries
        if isinstance(entry, RepoFile)
    ]
    for file in files:
        check_listed(repository, file)
    return commit, files


def check_listed(repository: str, file: HubFile) -> None:
    """Raise DataError if the hub lists a file without its size or names, or with a path outside the folder."""
    texts = (file.path, file.sha256, file.blob_id)
    if type(file.size) is not int or file.size < 0 or not all(type(text) is str for text in texts):
        raise DataError(f"{repository}: the hub's list of files is incomplete", "check HF_ENDPOINT")
    path = PurePosixPath(file.path)
    if "\\" in file.path or ":" in file.path or ".." in path.parts or not path.parts or path.is_absolute():
        raise DataError(
            f"{repository}: the hub lists '{file.path}', a path outside the download folder",
            "do not use this dataset, or this HF_ENDPOINT",
        )


def is_commit(revision: str) -> bool:
    return len(revision) == 40 and all(digit in "0123456789abcdef" for digit in revision)
