"""Errors of the Hugging Face hub's client, each as one line with a remedy."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.request import getproxies

from regpt.base.errors import DataError


@dataclass(frozen=True)
class HubContent:
    """What is asked of the hub, and how a user corrects it."""

    what: str
    correct_name: str
    correct_revision: str
    other_way: str  # without the hub


DATASET = HubContent(
    "dataset",
    "correct data.source",
    "set data.revision=main, or a commit of this dataset",
    "download the files yourself and set data.source to their folder",
)
MODEL = HubContent(
    "model",
    "correct the name behind hub:",
    "write hub:OWNER/NAME, or hub:OWNER/NAME@COMMIT",
    "download the files yourself and name their folder",
)


@contextmanager
def plain_hub_errors(repository: str, revision: str, content: HubContent = DATASET) -> Iterator[None]:
    """Turn errors of the hub's client that a retry would not change into a DataError with a remedy."""
    what = f"{repository} at revision {revision}"
    try:
        from huggingface_hub import HfApi, errors, hf_hub_download  # noqa: F401  loads all that will be used
    except Exception as error:  # it reads variables of the environment when it is imported
        raise cannot_start(repository, error) from None
    try:
        yield
    except errors.GatedRepoError:
        raise DataError(
            f"{what}: its terms of use are not accepted", "accept them on its page on the hub, then: hf auth login"
        ) from None
    except errors.RepositoryNotFoundError:
        raise DataError(
            f"{what}: the hub has no such {content.what}",
            f"{content.correct_name}; if the {content.what} is private: hf auth login",
        ) from None
    except errors.RevisionNotFoundError:
        raise DataError(f"{what}: the hub has no such revision", content.correct_revision) from None
    except errors.LocalEntryNotFoundError as error:  # also an EntryNotFoundError, but the network is missing
        raise unreachable(repository, error, content) from None
    except errors.EntryNotFoundError:
        raise DataError(
            f"{what}: the {content.what} has no such file or folder", "correct data.source (hub:OWNER/NAME/FOLDER)"
        ) from None
    except errors.OfflineModeIsEnabled as error:
        raise unreachable(repository, error, content) from None
    except errors.HfHubHTTPError as error:
        if error.response.status_code == 401:
            raise DataError(f"{what}: the hub refuses your token", "hf auth login, or unset HF_TOKEN") from None
        if error.response.status_code == 403:
            raise DataError(f"{what}: access is denied ({first_line(error)})", "use a token that may read it") from None
        raise
    except UnicodeEncodeError:  # the client builds headers in ASCII
        raise DataError(f"{what}: the token in HF_TOKEN has characters that no token has", "correct it") from None
    except ImportError as error:
        raise cannot_start(repository, error) from None


def cannot_start(repository: str, error: Exception) -> DataError:
    """Return the error for a client that cannot be imported or opened with this environment."""
    uses_socks = any(address.startswith("socks") for address in getproxies().values())
    if uses_socks and importlib.util.find_spec("socksio") is None:
        return DataError(
            f"{repository}: the hub cannot be reached through a SOCKS proxy without the package socksio",
            "pip install socksio, or unset ALL_PROXY and HTTPS_PROXY",
        )
    return DataError(
        f"{repository}: the hub's client cannot start ({type(error).__name__}: {first_line(error)})",
        "check the variables of your environment that start with HF_, and those for proxies",
    )


def unreachable(repository: str, error: Exception, content: HubContent = DATASET) -> DataError:
    """Return the error for a hub that does not answer, or that the environment forbids to ask."""
    from huggingface_hub import constants

    problem = f"{repository}: the hub could not be reached ({first_line(error.__cause__ or error)})"
    if constants.HF_HUB_OFFLINE:
        return DataError(problem, "unset HF_HUB_OFFLINE")
    advice = "check the network, proxies and HF_ENDPOINT"
    return DataError(problem, f"{advice}, or {content.other_way}")


def is_network_error(error: BaseException) -> bool:
    """Return whether a retry may help. The client raises OSError and ValueError; its HTTP library raises neither."""
    return isinstance(error, (OSError, ValueError)) or type(error).__module__.startswith("httpx")


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
