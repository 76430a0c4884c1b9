"""Errors of the Hugging Face hub, in one plain line."""

from collections.abc import Iterator
from contextlib import contextmanager

from regpt.base.errors import DataError


@contextmanager
def plain_hub_errors(repository: str, revision: str) -> Iterator[None]:
    """What the hub's client raises and another attempt would not change, as one line with its remedy."""
    from huggingface_hub import errors

    what = f"{repository} at revision {revision}"
    try:
        yield
    except errors.GatedRepoError:
        raise DataError(
            f"{what}: asks for its terms to be accepted", "accept them on its page on the hub, then: hf auth login"
        ) from None
    except errors.RepositoryNotFoundError:
        raise DataError(
            f"{what}: the hub knows no such data set", "mend data.source; if it is private: hf auth login"
        ) from None
    except errors.RevisionNotFoundError:
        raise DataError(
            f"{what}: the hub knows no such revision", "write data.revision=main, or a commit of this data set"
        ) from None
    except errors.EntryNotFoundError:
        raise DataError(f"{what}: has no such file or folder", "mend data.source (hub:OWNER/NAME/FOLDER)") from None


def is_network_error(error: BaseException) -> bool:
    """The client raises OSError and ValueError itself; what its HTTP library raises derives from neither."""
    return isinstance(error, (OSError, ValueError)) or type(error).__module__.startswith("httpx")


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
