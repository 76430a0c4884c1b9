"""Load a Hugging Face directory as a regpt model: its weights and its tokenizer."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from regpt.base.errors import UserError
from regpt.base.files import refuse_lfs_pointer
from regpt.data.tokenizer import Tokenizer
from regpt.interop.configuration import USE_THEIRS, read_config, recipe_from_config
from regpt.interop.huggingface import OUTPUT_BIAS, from_hugging_face, to_hugging_face
from regpt.interop.pretrained_tokenizer import load_tokenizer
from regpt.model.gpt import GPT
from regpt.recipe.architecture import ModelRecipe


def load_pretrained(directory: Path) -> tuple[GPT, Tokenizer]:
    """Return the model, in float32 and evaluation mode, and its tokenizer.

    Raises UserError for files that are missing, damaged or of an unsupported model.
    """
    config = read_config(directory)
    recipe = recipe_from_config(config, directory)
    theirs = read_weights(directory)
    if config["model_type"] == "gpt2" and not any(name.startswith("transformer.") for name in theirs):
        theirs = {f"transformer.{name}": tensor for name, tensor in theirs.items()}  # OpenAI's own files
    check_all_tensors_used(theirs, recipe, directory)
    check_output_biases(theirs, directory)
    model = GPT(recipe)
    try:
        model.load_state_dict(from_hugging_face(recipe, theirs))
    except (KeyError, RuntimeError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else str(error).splitlines()[-1].strip()
        raise UserError(f"{directory}: its weights do not fit its config.json ({what})", "fetch it again") from None
    return model.eval(), load_tokenizer(directory, recipe, config)


def read_weights(directory: Path) -> dict[str, Tensor]:
    """Read all tensors of model.safetensors, or of the files that its index names, in float32."""
    paths = [directory / "model.safetensors"]
    index = directory / "model.safetensors.index.json"
    try:
        if not paths[0].is_file() and index.is_file():
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            paths = [directory / Path(name).name for name in names]
        weights: dict[str, Tensor] = {}
        for path in paths:
            refuse_lfs_pointer(path)
            with safe_open(path, framework="pt") as file:
                weights |= {name: file.get_tensor(name).to(torch.float32) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        missing = next((path.name for path in paths if not path.is_file()), paths[0].name)
        raise UserError(
            f"{directory}: has no {missing}", "fetch the safetensors files; pickles (.bin) are not read"
        ) from None
    except (OSError, ValueError, KeyError, AttributeError, SafetensorError) as error:
        raise UserError(f"{directory}: its weights cannot be read ({error})", "fetch it again") from None
    return weights


# Tensors that are not weights: causal masks, and the angles of rotary positions.
BUFFER_SUFFIXES = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")


def check_all_tensors_used(theirs: Mapping[str, Tensor], recipe: ModelRecipe, directory: Path) -> None:
    """Raise UserError for a tensor that regpt's model does not use: without it, it would be another model."""
    with torch.device("meta"):
        ours = to_hugging_face(GPT(recipe), on_cpu=False)
    left = [name for name in theirs if name not in ours and not name.endswith(BUFFER_SUFFIXES)]
    embedding = "model.embed_tokens.weight" if "model.embed_tokens.weight" in theirs else "transformer.wte.weight"
    tied = [name for name in left if name.endswith("lm_head.weight") and recipe.tied_head]
    if tied and embedding in theirs and torch.equal(theirs[tied[0]], theirs[embedding]):
        left.remove(tied[0])  # written twice
    if left:
        more = f" and {len(left) - 1:,} more" if len(left) > 1 else ""
        raise UserError(
            f"{directory}: holds {left[0]}{more}, for which a model as its config.json describes it has no place",
            USE_THEIRS,
        )


def check_output_biases(theirs: Mapping[str, Tensor], directory: Path) -> None:
    """Raise UserError for a bias of attention's output that is not zero."""
    found = [name for name, tensor in theirs.items() if name.endswith(OUTPUT_BIAS) and tensor.any()]
    if found:
        raise UserError(f"{directory}: {found[0]} is not zero, but regpt has biases of q, k and v alone", USE_THEIRS)
