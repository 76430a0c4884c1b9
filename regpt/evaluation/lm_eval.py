"""Evaluate a model with EleutherAI's lm-evaluation-harness (lm-eval): its tasks and metrics, our forward passes.

Import this module only where it is needed: lm-eval is an optional package.
"""

import json
import traceback
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from regpt.base.errors import UserError
from regpt.base.files import write_text
from regpt.base.packages import is_installed
from regpt.data.tokenizer import Tokens
from regpt.distributed.rank_group import RankGroup
from regpt.evaluation.evaluate import ReportTaskProgress, ignore_task_progress
from regpt.evaluation.results import Result, add_result, create_results
from regpt.evaluation.scoring import PackedQuestions, choice_losses_and_greedy, max_batch_tokens
from regpt.interop.open_model import LoadedModel, digest_of_weights
from regpt.machine.device import Device
from regpt.machine.env import disable_lm_eval_multiprocessing
from regpt.tasks.packing import Question

# A request of lm-eval: ((context, continuation), context tokens, continuation tokens)
Request = tuple[tuple[str, str], list[int], list[int]]


def as_tokens(lists: Iterable[list[int]]) -> tuple[Tokens, ...]:
    return tuple(np.array(ids, dtype=np.int64) for ids in lists)


def make_harness_model(loaded: LoadedModel, device: Device, ranks: RankGroup, progress: ReportTaskProgress) -> Any:
    """Wrap a model as an `lm_eval.api.model.LM`. Raises UserError where lm-eval is not installed."""
    if not is_installed("lm_eval"):
        raise UserError("lm-eval is not installed", "pip install 'regpt[lm-eval]'")
    from lm_eval.api.model import TemplateLM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    class HarnessModel(TemplateLM):  # type: ignore[misc]
        """Every rank receives the same requests; the groups of them are dealt to the ranks when they are scored."""

        @property
        def eot_token_id(self) -> int:
            return min(loaded.tokenizer.eos)

        @property
        def prefix_token_id(self) -> int:
            return loaded.tokenizer.bos

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
            # None: the tokenizer decides, as with lm-eval's own Hugging Face models
            before = () if add_special_tokens is False else loaded.tokenizer.prefix
            return [*before, *map(int, loaded.tokenizer.encode(string))]

        def _loglikelihood_tokens(self, requests: Sequence[Request], **kwargs: Any) -> list[tuple[float, bool]]:
            # Requests with one context follow each other, as the choices of an item do: they share one forward pass.
            groups = [list(group) for _, group in groupby(requests, key=lambda request: request[1])]
            questions = [Question(as_tokens(r[1] for r in group), as_tokens(r[2] for r in group)) for group in groups]
            packed = PackedQuestions(questions, loaded.model.recipe.block_size, max_batch_tokens(loaded.recipe, device))
            losses, misses = choice_losses_and_greedy(
                loaded.model, packed, device, lambda done, total: progress("lm-eval", done, total), ranks
            )
            return [
                (-float(losses[row, number]), not misses[row, number])
                for row, group in enumerate(groups)
                for number in range(len(group))
            ]

        def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
            sums = []
            for request in requests:
                windows = get_rolling_token_windows(
                    token_list=self.tok_encode(request.args[0]),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=loaded.model.recipe.block_size,
                    context_len=1,
                )
                parts = [(("", ""), *make_disjoint_window(window)) for window in windows]
                sums.append(sum(likelihood for likelihood, _ in self._loglikelihood_tokens(parts)))
            return sums

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
            raise UserError(
                "a task needs generated text, which regpt does not offer to lm-eval",
                "export the model (`regpt export`) and run lm-eval on it with its own Hugging Face model",
            )

    return HarnessModel()


def evaluate_with_lm_eval(
    loaded: LoadedModel,
    names: str | None,
    into: Path,
    device: Device,
    ranks: RankGroup,
    items: int = 0,
    progress: ReportTaskProgress = ignore_task_progress,
    include_path: Path | None = None,
) -> list[Result]:
    """Evaluate a model on tasks of lm-eval; returns the rows of a table on rank 0, nothing on other ranks.

    `names` is a list separated by commas; `include_path` a directory with further tasks. The samples that lm-eval
    logs for each item are written to lm_eval_TASK.jsonl. Raises UserError for an unknown task, or where it fails.
    """
    if not names:
        raise UserError("--lm-eval needs --tasks", "name tasks of lm-eval, such as --tasks lambada_openai")
    model = make_harness_model(loaded, device, ranks, progress)
    disable_lm_eval_multiprocessing()
    loaded.model.to(device.torch_device)
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(include_path) if include_path else None)
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if unknown := [name for name in wanted if name not in manager.all_tasks]:
        raise UserError(f"lm-eval has no task {', '.join(unknown)}", "`lm-eval ls tasks` lists its tasks")
    try:
        found = simple_evaluate(model, tasks=wanted, limit=items or None, task_manager=manager, bootstrap_iters=1000)
    except UserError:
        raise
    except Exception as error:  # loading a dataset may raise anything
        dataset = dataset_that_failed(error)
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(
            f"lm-eval cannot load the dataset {dataset} for {names} ({why})"
            if dataset
            else f"lm-eval failed on {names} ({why})",
            "leave that task out of --tasks, or give one with a local dataset by --include-path",
        ) from error
    if not ranks.is_main or found is None:
        return []
    create_results(into, loaded, digest_of_weights(loaded.model))
    results = []
    samples, groups = found.get("samples", {}), found.get("group_subtasks", {})
    for name, figures in found["results"].items():
        if groups.get(name):
            tasks = members(name, groups)
            dataset = f"{sum(len(samples.get(task, [])) for task in tasks):,} items of {len(tasks):,} tasks"
        else:
            write_samples(into, name, samples.get(name, []))
            dataset = f"{len(samples.get(name, [])):,} items"
        results += add_figures(name, figures, dataset, into, device)
    return results


def dataset_that_failed(error: BaseException) -> str:
    """Return the path and name of the dataset that lm-eval was loading when it failed; empty if it was not loading."""
    from lm_eval.api.task import Task

    for frame, _ in traceback.walk_tb(error.__traceback__):
        task = frame.f_locals.get("self")
        if frame.f_code.co_name == "download" and isinstance(task, Task):
            return " ".join(filter(None, [task.DATASET_PATH, task.DATASET_NAME]))
    return ""


def members(name: str, groups: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the tasks of a group and of the groups in it, each once."""
    inner = [
        task for child in groups.get(name, []) for task in (members(child, groups) if groups.get(child) else [child])
    ]
    return list(dict.fromkeys(inner))


def write_samples(into: Path, name: str, samples: Sequence[Any]) -> None:
    """Write what lm-eval logs for each item of a task."""
    lines = [json.dumps(sample, default=str) for sample in samples]
    write_text(into / f"lm_eval_{name}.jsonl", "\n".join([*lines, ""]))


def add_figures(name: str, figures: Mapping[str, Any], dataset: str, into: Path, device: Device) -> list[Result]:
    """Add the figures of a task or group to results.json and return their rows of the table. A group may have none."""
    shares = {key.removesuffix(",none"): value for key, value in figures.items() if isinstance(value, float)}
    errors = {key.replace("_stderr", ""): value for key, value in shares.items() if "_stderr" in key}
    values = {key: value for key, value in shares.items() if "_stderr" not in key}
    if values:
        add_result(into, device, f"lm_eval_{name}", {"items": dataset, "accuracy": values, "standard_error": errors})
    return [Result(name, "lm-eval", key, value, errors.get(key), dataset) for key, value in values.items()]
