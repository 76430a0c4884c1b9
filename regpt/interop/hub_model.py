"""Download a model from the Hugging Face hub into the cache of its client."""

import re
from pathlib import Path

from regpt.base.errors import UserError
from regpt.base.hub_errors import MODEL, first_line, is_network_error, plain_hub_errors, unreachable

HUB = "hub:"
WEIGHTS = ["model*.safetensors", "model.safetensors.index.json"]
OTHER_FILES = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
]
NAME = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


def download_model(where: str, weights: bool = True) -> tuple[Path, str]:
    """Return the folder of 'hub:OWNER/NAME' or 'hub:OWNER/NAME@REVISION' in the cache, and where to find it again.

    Without `weights` those are not downloaded. The second value names the commit. Files that the cache holds
    are not downloaded again, and without a network they are used as they are. Raises UserError for another form,
    DataError if the hub has no such model.
    """
    found = NAME.fullmatch(where.removeprefix(HUB))
    if found is None:
        raise UserError(
            f"'{where}' is not a model on the hub", "write hub:OWNER/NAME, such as hub:openai-community/gpt2"
        )
    repository, revision = found["repository"], found["revision"] or "main"
    try:
        with plain_hub_errors(repository, revision, MODEL):
            from huggingface_hub import snapshot_download

            names = [*OTHER_FILES, *WEIGHTS] if weights else OTHER_FILES
            folder = Path(snapshot_download(repository, revision=revision, allow_patterns=names))
    except UserError:
        raise
    except Exception as error:  # of the client's HTTP library
        if not is_network_error(error):
            raise UserError(f"{where}: cannot be downloaded ({first_line(error)})", "try again later") from error
        raise unreachable(repository, error, MODEL) from None
    return folder, f"{HUB}{repository}@{folder.name}"
