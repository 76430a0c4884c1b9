"""Checks of what is done with a model: it is asked, it writes, it is exported and reported on."""

import numpy as np
import torch

from regpt.base.errors import UserError
from regpt.data.tokenizer import encode
from regpt.distributed.rank_group import RankGroup
from regpt.doctor.findings import CheckFailed, CheckSkipped
from regpt.doctor.rehearsal import ITEMS, Rehearsal
from regpt.evaluation.evaluate import evaluate
from regpt.evaluation.sampling import Sampling, continuations
from regpt.interop.huggingface import export
from regpt.interop.open_model import load_model, open_model
from regpt.report.page import write_report
from regpt.tracking.journal import read_history
from regpt.tracking.layout import EVALUATIONS_DIR, VALIDATION, RunPaths
from regpt.tracking.run import open_run


def check_evaluation(of: Rehearsal) -> str:
    last = read_history(of.run).validations[-1]
    opened = open_model(str(of.run), of.folder, [])
    results = evaluate(opened, [VALIDATION], of.folder / EVALUATIONS_DIR, of.device, RankGroup())
    again = results[0].value
    if not abs(again - last.loss) <= 1e-3:
        raise CheckFailed(
            f"validation loss {last.loss:.4f} in the run, {again:.4f} of its checkpoint", "weights are lost in saving"
        )
    measured = read_history(of.run).tasks
    asked = of.recipe.evaluation.hellaswag_every
    if asked and not measured:
        why = open_run(of.run).hellaswag_unmeasured
        raise CheckFailed(f"HellaSwag was not measured: {why}", "get its items, or set evaluation.hellaswag_every=0")
    of_items = f"; {ITEMS} HellaSwag items in {measured[-1].seconds:.1f} s" if measured else ""
    return f"the checkpoint's validation loss is the run's, {again:.4f}{of_items}"


def check_samples(of: Rehearsal) -> str:
    drawn = read_history(of.run).samples
    if not drawn:
        raise CheckSkipped("the recipe asks for no samples")
    record, asked = drawn[-1], of.small.evaluation
    new_tokens = max(0, asked.sample_tokens - len(encode(record.prompt)))
    again = continuations(
        load_model(of.run).to(of.device.torch_device),
        record.prompt,
        len(record.texts),
        new_tokens,
        Sampling(top_k=record.top_k, seed=record.seed),
    )
    if again != record.texts:
        raise CheckFailed(
            f"the run wrote {record.texts[0]!r}, its checkpoint {again[0]!r}", "weights are lost in saving"
        )
    return f"the checkpoint writes what the run wrote: {again[0]!r}"


def check_export(of: Rehearsal) -> str:
    target = of.folder / "exported"
    model = load_model(of.run)
    try:
        export(model, target)
    except UserError as error:
        raise CheckSkipped(f"{error.problem} ({error.fix})") from None
    theirs = open_model(str(target), of.folder, []).model.eval()
    tokens = torch.from_numpy(encode(of.recipe.evaluation.sample_prompt).astype(np.int64))[None]
    with torch.no_grad():
        apart = float((model.logits(model.hidden(tokens)) - theirs.logits(theirs.hidden(tokens))).abs().max())
    if not apart < 1e-4:
        raise CheckFailed(f"read again, the exported model's logits differ by {apart:.2g}", "do not use the export")
    return "written as a Hugging Face directory and read again: the same logits"


def check_report(of: Rehearsal) -> str:
    run = open_run(of.run)
    text = write_report(run, []).read_text(encoding="utf-8")
    assert run.validation_loss is not None
    missing = [
        image for image in ("train-val_loss.png", "course.png") if not (RunPaths(of.run).images / image).exists()
    ]
    if missing or f"{run.validation_loss:.4f}" not in text:
        raise CheckFailed(
            f"the report lacks {', '.join(missing) or 'its last loss'}", "try it on a run: regpt report RUN"
        )
    return "written, with its pictures"
