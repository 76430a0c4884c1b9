"""Describe the environment of a new run: code, packages, machine, data, command."""

import platform
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

import regpt
from regpt.base.format import shown
from regpt.data.shards import Manifest
from regpt.data.token_statistics import statistics_of
from regpt.inspection.duplicate_record import stored_duplicates
from regpt.machine.device import Device
from regpt.recipe.differences import recipe_digest
from regpt.recipe.recipe import Recipe
from regpt.tracking.environment import DeviceInfo, Environment, Origin, Packages, data_info


def environment(
    recipe: Recipe, device: Device, manifest: Manifest, ranks: int, origin: Origin | None = None
) -> Environment:
    """Describe the environment of a new run. Measure the statistics of the dataset if they are not stored with it.

    `origin` is the model from whose weights it starts; None: weights from the seed.
    Packed conversations have no statistics: entropies are over all tokens, their loss is not.
    """
    statistics = None if manifest.row_tokens else statistics_of(recipe.data.directory, manifest)
    duplicates = stored_duplicates(recipe.data.directory, manifest)
    return Environment(
        recipe_name=recipe.name,
        recipe_digest=recipe_digest(recipe),
        code_version=code_version(),
        packages=Packages(python=platform.python_version(), torch=torch.__version__, numpy=np.__version__),
        system=platform.platform(),
        device=DeviceInfo(
            place=str(device.torch_device),
            name=device.name,
            precision=device.precision_name,
            compiled=device.compiled,
            peak_flops=device.peak_flops,
            peak_source=device.peak_source,
            peak_measurements=device.peak_measurements,
        ),
        ranks=ranks,
        data=data_info(
            {
                "digest": manifest.digest,
                "tokenizer": manifest.tokenizer,
                "source": manifest.source,
                "train_tokens": manifest.tokens("train"),
                "validation_tokens": manifest.tokens("val"),
                "shards": len(manifest.shards),
                "text_bytes": manifest.statistics.get("text_bytes", 0),
                "made_with": manifest.made_with,
                "split": asdict(manifest.validation),
                "statistics": statistics and statistics.to_json(),
                "duplicates": duplicates and duplicates.to_json(),
            }
        ),
        command=[Path(sys.argv[0]).name, *map(shown, sys.argv[1:])],
        origin=origin,
    )


def code_version() -> str:
    """The package's version, and the commit where it runs from a clone."""
    root = Path(regpt.__file__).parent.parent
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = ""
    inside = commit and (root / ".git").exists()
    return f"{regpt.__version__} ({commit})" if inside else regpt.__version__
