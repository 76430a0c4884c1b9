"""EleutherAI's lm-evaluation-harness (lm-eval) on a model of ours: its tasks and its judging, our reading of contexts.

Imported only by who asks for it; the package is an extra.
"""

import importlib.util
import json
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from regpt.base.errors import UserError
from regpt.base.files import write_text
from regpt.data.tokenizer import Tokens
from regpt.distributed.device import Device
from regpt.distributed.env import disable_lm_eval_multiprocessing
from regpt.distributed.ranks import RankGroup
from regpt.evaluation.evaluate import Busy, Result, add_result, begin, digest_of_weights
from regpt.evaluation.scoring import PackedQuestions, choice_losses_and_greedy, max_batch_tokens
from regpt.interop.open_model import LoadedModel
from regpt.tasks.packing import Question

# What is asked for by the harness: ((context, continuation), their tokens, their tokens)
Request = tuple[tuple[str, str], list[int], list[int]]


def tokens(lists: Iterable[list[int]]) -> tuple[Tokens, ...]:
    return tuple(np.array(ids, dtype=np.int64) for ids in lists)


def harness_model(opened: LoadedModel, device: Device, ranks: RankGroup, busy: Busy) -> Any:
    """An `lm_eval.api.model.LM` around a model of ours. Raises UserError where lm-eval is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("lm-eval is not installed", "pip install 'regpt[lm-eval]'")
    from lm_eval.api.model import TemplateLM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    class HarnessModel(TemplateLM):  # type: ignore[misc]
        """Every rank asks the same; groups of requests are shared out among them below."""

        @property
        def eot_token_id(self) -> int:
            return opened.vocabulary.end_of_text

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
            return [int(token) for token in opened.vocabulary.encode(string)]

        def _loglikelihood_tokens(self, requests: Sequence[Request], **kwargs: Any) -> list[tuple[float, bool]]:
            # requests with one context stand side by side, as the choices of an item
            contexts = [list(same) for _, same in groupby(requests, key=lambda request: request[1])]
            questions = [Question(tokens(r[1] for r in same), tokens(r[2] for r in same)) for same in contexts]
            paper = PackedQuestions(questions, opened.model.recipe.block_size, max_batch_tokens(opened.recipe, device))
            losses, others = choice_losses_and_greedy(
                opened.model, paper, device, lambda d, of: busy("lm-eval", d, of), ranks
            )
            return [
                (-float(losses[row, number]), not others[row, number])
                for row, same in enumerate(contexts)
                for number in range(len(same))
            ]

        def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
            sums = []
            for request in requests:
                windows = get_rolling_token_windows(
                    token_list=self.tok_encode(request.args[0]),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=opened.model.recipe.block_size,
                    context_len=1,
                )
                parts = [(("", ""), *make_disjoint_window(window)) for window in windows]
                sums.append(sum(likelihood for likelihood, _ in self._loglikelihood_tokens(parts)))
            return sums

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
            raise UserError(
                "this task asks for generated text, which regpt gives to lm-eval not at all",
                "regpt export, and lm-eval's own Hugging Face model",
            )

    return HarnessModel()


def ask_harness(
    opened: LoadedModel,
    names: str | None,
    into: Path,
    device: Device,
    ranks: RankGroup,
    items: int = 0,
    busy: Busy = lambda what, done, of: None,
    include_path: Path | None = None,
) -> list[Result]:
    """Ask tasks of lm-eval; returns the lines of a table. What it says of each item goes into lm_eval_TASK.jsonl."""
    if not names:
        raise UserError("--lm-eval without --tasks", "name its tasks, as in --tasks lambada_openai")
    model = harness_model(opened, device, ranks, busy)
    disable_lm_eval_multiprocessing()
    opened.model.to(device.torch_device)
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(include_path) if include_path else None)
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if unknown := [name for name in wanted if name not in manager.all_tasks]:
        raise UserError(f"lm-eval has no task {', '.join(unknown)}", "`lm-eval ls tasks` lists them")
    try:
        found = simple_evaluate(model, tasks=wanted, limit=items or None, task_manager=manager, bootstrap_iters=1000)
    except UserError:
        raise
    except Exception as error:  # its loading of data sets raises what it likes
        raise UserError(
            f"lm-eval could not carry out {names} ({type(error).__name__}: {str(error).splitlines()[0][:200]})",
            "its data sets come from the hub; or give tasks of your own with --include-path",
        ) from error
    if not ranks.is_main or found is None:
        return []
    begin(into, opened, digest_of_weights(opened.model))
    lines = []
    for name, figures in found["results"].items():
        shares = {key.removesuffix(",none"): value for key, value in figures.items() if isinstance(value, float)}
        errors = {key.replace("_stderr", ""): value for key, value in shares.items() if "_stderr" in key}
        values = {key: value for key, value in shares.items() if "_stderr" not in key}
        count = len(found.get("samples", {}).get(name, []))
        of = f"{count:,} items"
        about = {"items": of, "accuracy": values, "standard_error": errors}
        add_result(into, device, f"lm_eval_{name}", about)
        samples = [json.dumps(sample, default=str) for sample in found.get("samples", {}).get(name, [])]
        write_text(into / f"lm_eval_{name}.jsonl", "\n".join([*samples, ""]))
        for key, value in values.items():
            margin = f"{errors[key]:.4f}" if key in errors else ""
            lines.append(Result(name, "lm-eval", key, f"{value:.4f}", margin, of))
    return lines
