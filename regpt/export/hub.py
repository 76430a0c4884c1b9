"""Upload an exported model to the Hugging Face hub, through the hub's own client and login."""

import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from regpt.base.errors import DataError, UserError
from regpt.base.files import temporary_folder
from regpt.base.hub_errors import MODEL, is_network_error, plain_hub_errors, unreachable
from regpt.export.directory import ExportOptions
from regpt.export.opened import export_directory
from regpt.interop.hub_model import HUB
from regpt.interop.open_model import LoadedModel

NAME = re.compile(r"[\w.-]+/[\w.-]+")
# Files of an earlier model in the repository that would be loaded with, or instead of, the new ones.
OF_A_MODEL = (".safetensors", ".safetensors.index.json", ".py", ".jinja")
UPLOAD = replace(MODEL, other_way="export a directory and upload it later: hf upload OWNER/NAME DIRECTORY")
MAY_WRITE = "hf auth login, with a token that may write to this account"


def parse_target(where: str) -> str:
    """Return OWNER/NAME of 'hub:OWNER/NAME'. Raises UserError for another form."""
    repository = where.removeprefix(HUB)
    if not where.startswith(HUB) or not NAME.fullmatch(repository):
        raise UserError(f"--to {where}: not a model on the hub", "write hub:OWNER/NAME")
    return repository


def upload_model(
    opened: LoadedModel,
    repository: str,
    options: ExportOptions,
    *,
    licence: str = "",
    public: bool = False,
    note: Callable[[str], None] = lambda text: None,
) -> str:
    """Export a model to a temporary directory and upload it as one commit; return its address.

    A repository that does not exist is created: private, unless `public`. In one that exists, the commit replaces the
    model, and the visibility stays.

    Raises UserError as `export_directory` does, and DataError where the hub refuses the upload.
    """
    check_login(repository)
    with temporary_folder(Path(tempfile.gettempdir()), "regpt-export-") as folder:
        target = folder / "model"
        export_directory(opened, target, options, name=repository, licence=licence, note=note)
        with upload_errors(repository):
            return upload(target, repository, public, f"{opened.name}, exported by regpt")


def check_login(repository: str) -> None:
    """Raise DataError if the hub's client has no token."""
    with plain_hub_errors(repository, "main", UPLOAD):
        from huggingface_hub import get_token

        if get_token() is None:
            raise DataError(f"{repository}: an upload needs a token of the hub, and no token was found", MAY_WRITE)


def upload(folder: Path, repository: str, public: bool, message: str) -> str:
    """Upload the files of a folder as one commit, which also removes the files of an earlier model."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi()
    api.create_repo(repository, private=not public, exist_ok=True)
    files = {path.name: path for path in sorted(folder.iterdir())}
    there = api.list_repo_files(repository)
    left = [name for name in there if name.endswith(OF_A_MODEL) and name not in files and "/" not in name]
    operations: list[Any] = [CommitOperationAdd(name, path) for name, path in files.items()]
    operations += [CommitOperationDelete(name) for name in left]
    api.create_commit(repository, operations, commit_message=message)
    return f"{api.endpoint}/{repository}"


@contextmanager
def upload_errors(repository: str) -> Iterator[None]:
    """Turn errors of an upload into a DataError with a remedy."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        with plain_hub_errors(repository, "main", UPLOAD), refusals(repository):
            yield
    except UserError:
        raise
    except HfHubHTTPError as error:
        raise refused(repository, error, "try again later") from None
    except ValueError as error:  # the metadata of the card
        raise refused(repository, error, "check --license") from None
    except Exception as error:
        network = any(one and is_network_error(one) for one in (error, error.__cause__))  # the cause in its threads
        if not network and isinstance(error, RuntimeError):  # of hf_xet
            raise refused(repository, error, "try again later") from None
        if not network:
            raise
        raise unreachable(repository, error, UPLOAD) from None


@contextmanager
def refusals(repository: str) -> Iterator[None]:
    """Turn a missing permission into a DataError."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            raise refused(repository, error, MAY_WRITE) from None
        raise


def refused(repository: str, error: Exception, remedy: str) -> DataError:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return DataError(f"{repository}: the hub refuses the upload ({' '.join(lines)})", remedy)
