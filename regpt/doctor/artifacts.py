"""Check what uses a trained model: evaluation, sampling, export and report."""

import torch

from regpt.base.format import duration
from regpt.distributed.rank_group import RankGroup
from regpt.doctor.checks import CheckFailed, CheckSkipped
from regpt.doctor.rehearsal import HELLASWAG_ITEMS, Rehearsal
from regpt.evaluation.evaluate import evaluate
from regpt.evaluation.sampling import continuations
from regpt.export.directory import export
from regpt.export.read_back import ReadBackError
from regpt.generation.drawing import Sampling
from regpt.interop.form import form_of, form_text
from regpt.interop.open_model import open_model
from regpt.reporting.page import LOSS_CURVE, TRAINING_DYNAMICS, write_report
from regpt.tracking.journal import read_history
from regpt.tracking.layout import EVALUATIONS_DIR, VALIDATION, RunPaths
from regpt.tracking.run import open_run

LOSS_TOLERANCE = 1e-3  # nats; the run and the evaluation may use different batch sizes
LOGIT_TOLERANCE = 1e-4


def check_evaluation(rehearsal: Rehearsal) -> str:
    """Evaluate the checkpoint and compare its validation loss with the run's."""
    last = read_history(rehearsal.run).validations[-1]
    model = open_model(str(rehearsal.run), rehearsal.folder, [])
    results = evaluate(model, [VALIDATION], rehearsal.folder / EVALUATIONS_DIR, rehearsal.device, RankGroup())
    loss = results[0].value
    if not abs(loss - last.loss) <= LOSS_TOLERANCE:
        raise CheckFailed(
            f"the validation loss is {last.loss:.4f} in the run but {loss:.4f} for its checkpoint",
            "saving or loading changes the weights; do not train until this is fixed",
        )
    tasks = read_history(rehearsal.run).tasks
    if rehearsal.recipe.evaluation.hellaswag_every and not tasks:
        reason = open_run(rehearsal.run).hellaswag_unmeasured
        raise CheckFailed(
            f"HellaSwag was not measured: {reason}", "download its items, or set evaluation.hellaswag_every=0"
        )
    hellaswag = f"; {HELLASWAG_ITEMS} HellaSwag items in {duration(tasks[-1].seconds)}" if tasks else ""
    return f"the checkpoint has the run's validation loss, {loss:.4f}{hellaswag}"


def check_samples(rehearsal: Rehearsal) -> str:
    """Sample from the checkpoint and compare the text with the run's."""
    samples = read_history(rehearsal.run).samples
    if not samples:
        raise CheckSkipped("the recipe samples no text")
    record = samples[-1]
    opened = open_model(str(rehearsal.run), rehearsal.folder, [])
    new_tokens = max(0, rehearsal.small.evaluation.sample_tokens - len(opened.tokenizer.encode(record.prompt)))
    texts = continuations(
        opened.model.to(rehearsal.device.torch_device),
        record.prompt,
        len(record.texts),
        new_tokens,
        Sampling(top_k=record.top_k, seed=record.seed),
        tokenizer=opened.tokenizer,
    )
    if texts != record.texts:
        raise CheckFailed(
            f"the run sampled {record.texts[0]!r}, its checkpoint {texts[0]!r}",
            "saving or loading changes the weights; do not train until this is fixed",
        )
    return f"the checkpoint samples the run's text: {texts[0]!r}"


def check_export(rehearsal: Rehearsal) -> str:
    """Export to a Hugging Face directory, load it again and compare the logits."""
    target = rehearsal.folder / "exported"
    opened = open_model(str(rehearsal.run), rehearsal.folder, [])
    model = opened.model
    try:
        export(model, target, vocabulary=opened.tokenizer, source=opened.tokenizer_folder)
    except ReadBackError as error:
        raise CheckFailed(error.problem, "do not use `regpt export`") from None
    exported = open_model(str(target), rehearsal.folder, []).model.eval()
    tokens = torch.from_numpy(opened.tokenizer.tokens(rehearsal.recipe.evaluation.sample_prompt))[None]
    with torch.no_grad():
        logits = exported.logits(exported.hidden(tokens))
        ours = model.logits(model.hidden(tokens))[..., : logits.shape[-1]]
        difference = float((ours - logits).abs().max())
    if not difference < LOGIT_TOLERANCE:
        raise CheckFailed(
            f"the logits of the exported model differ by up to {difference:.2g}", "do not use `regpt export`"
        )
    return f"exported {form_text(form_of(model.recipe))}; the logits are the same"


def check_report(rehearsal: Rehearsal) -> str:
    """Write the report with its figures."""
    run = open_run(rehearsal.run)
    text = write_report(run, []).read_text(encoding="utf-8")
    assert run.validation_loss is not None
    images = RunPaths(rehearsal.run).images
    missing = [image for image in (f"{LOSS_CURVE}.png", f"{TRAINING_DYNAMICS}.png") if not (images / image).exists()]
    if missing or f"{run.validation_loss:.4f}" not in text:
        raise CheckFailed(
            f"the report lacks {', '.join(missing) or 'the last validation loss'}",
            "run `regpt report` on a finished run to see the error",
        )
    return "written with its figures"
