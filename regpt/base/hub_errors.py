"""Convert errors of the Hugging Face hub into one line with a remedy."""

from collections.abc import Iterator
from contextlib import contextmanager

from regpt.base.errors import DataError


@contextmanager
def plain_hub_errors(repository: str, revision: str) -> Iterator[None]:
    """Convert errors that a retry would not fix into a DataError with a remedy."""
    from huggingface_hub import errors

    what = f"{repository} at revision {revision}"
    try:
        yield
    except errors.GatedRepoError:
        raise DataError(
            f"{what}: its terms of use are not accepted", "accept them on its page on the hub, then: hf auth login"
        ) from None
    except errors.RepositoryNotFoundError:
        raise DataError(
            f"{what}: the hub has no such dataset", "correct data.source; if the dataset is private: hf auth login"
        ) from None
    except errors.RevisionNotFoundError:
        raise DataError(
            f"{what}: the hub has no such revision", "set data.revision=main, or a commit of this dataset"
        ) from None
    except errors.EntryNotFoundError:
        raise DataError(
            f"{what}: the dataset has no such file or folder", "correct data.source (hub:OWNER/NAME/FOLDER)"
        ) from None


def is_network_error(error: BaseException) -> bool:
    """Return whether a retry may help. The client raises OSError and ValueError; its HTTP library raises neither."""
    return isinstance(error, (OSError, ValueError)) or type(error).__module__.startswith("httpx")


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
