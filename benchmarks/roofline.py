"""Print the roofline fit, speeds excluded from it, and three tables of docs/plan.md.

python -m benchmarks.roofline
"""

from collections.abc import Sequence

from regpt.base.cards import CARDS, find_card
from regpt.base.format import number_range
from regpt.plan.estimate import Estimate, Hardware, estimate
from regpt.plan.published_speeds import ELSEWHERE, MODELS, PUBLISHED, Speed, published_speeds
from regpt.plan.roofline import parts_per_token, seconds_per_token
from regpt.recipe.settings import load_recipe

RECIPES = ("gpt2-classic", "gpt2-modern")
OFF = "run.compile=off"
MACHINES = (("RTX 5090", 1), ("RTX 4090", 1), ("RTX 3090", 4), ("A100 80GB", 1), ("H100", 8))


def fit_constants(speeds: Sequence[Speed]) -> tuple[float, float]:
    """Fit (share of peak, passes) by least squares of the relative error in time; the share is at most 1.

    The time of the loss has no fitted constant: it is subtracted.
    """
    rows = []
    for speed in speeds:
        parts = parts_per_token(MODELS[speed.model], find_card(speed.card))
        rest = 1 - parts.loss * speed.tokens_per_second
        rows.append((parts.at_peak * speed.tokens_per_second, parts.one_pass * speed.tokens_per_second, rest))
    aa, ab, bb, a, b = (sum(row[i] * row[j] for row in rows) for i, j in ((0, 0), (0, 1), (1, 1), (0, 2), (1, 2)))
    inverse_share = max(1.0, (a * bb - b * ab) / (aa * bb - ab * ab))
    return 1 / inverse_share, max(0.0, (b - inverse_share * ab) / bb)


def split_for_fit() -> tuple[Sequence[Speed], Sequence[Speed]]:
    """Return (fitting half, held-out half): every second published speed."""
    return PUBLISHED[::2], PUBLISHED[1::2]


def fit_table() -> list[str]:
    """Return a table of the published speeds and the formula fitted to one half, the other half, and all of them."""
    first, second = split_for_fit()
    constants = [fit_constants(first), fit_constants(second), fit_constants(PUBLISHED)]
    lines = [
        "| card | model | published, tokens/s | formula / published, fitted on ● | on ○ | on all | source |",
        "|---|---|---|---|---|---|---|",
    ]
    for speed in PUBLISHED:
        mark = "●" if speed in first else "○"
        ratios = [predicted(speed, *pair) / speed.tokens_per_second for pair in constants]
        cells = [speed.card, f"{speed.model} {mark}", f"{speed.tokens_per_second:,.0f}", *(f"{r:.2f}" for r in ratios)]
        lines.append(f"| {' | '.join(cells)} | {speed.source} |")
    shown = ["share of peak, passes", "", "", *(f"{share:.2f}, {passes:.1f}" for share, passes in constants), ""]
    return [*lines, f"| {' | '.join(shown)} |"]


def elsewhere_table() -> list[str]:
    """Return a table of the published speeds that are excluded from the fit."""
    lines = ["| card | model | published, tokens/s | formula / published | source |", "|---|---|---|---|---|"]
    for speed in ELSEWHERE:
        ratio = speed.predicted / speed.tokens_per_second
        lines.append(
            f"| {speed.card} | {speed.model} | {speed.tokens_per_second:,.0f} | {ratio:.2f} | {speed.source} |"
        )
    return lines


def speed_table() -> list[str]:
    """Return a table of the fitted speeds (●) and the held-out ones (○), with the name of each source."""
    fitted, held_out = split_for_fit()
    lines = ["| card | model | published, tokens/s | formula / published | source |", "|---|---|---|---|---|"]
    for mark, speeds in (("●", fitted), ("○", held_out)):
        for speed in speeds:
            ratio = speed.predicted / speed.tokens_per_second
            published = f"{speed.tokens_per_second:,.0f} {mark}"
            lines.append(f"| {speed.card} | {speed.model} | {published} | {ratio:.2f} | {speed.project} |")
    return lines


def published_table() -> list[str]:
    """Return a table of the speeds that `plan` predicts for gpt2-modern next to published ones of the same size."""
    lines = [
        "| card | gpt2-modern, tokens/s | with run.compile=off | published for GPT-2 124M |",
        "|---|---|---|---|",
    ]
    model = load_recipe("gpt2-modern").model
    for name in ("RTX 5090", "RTX 4090", "A100 80GB", "H100", "H200"):
        card = find_card(name)
        speeds = [recipe_estimate("gpt2-modern", name, 1, *more).tokens_per_second for more in ([], [OFF])]
        shown = [f"{speed.project} {speed.tokens_per_second:,.0f}" for speed in published_speeds(card, model)]
        cells = [name, *(number_range(*sorted(speed)) for speed in speeds), ", ".join(shown)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def predicted(speed: Speed, share: float, passes: float) -> float:
    """Return the predicted tokens/s for given constants."""
    return 1 / seconds_per_token(MODELS[speed.model], find_card(speed.card), share, passes)


def card_table() -> list[str]:
    """Return a table of all known cards. `regpt/base/cards.py` has the source of each peak."""
    lines = ["| card | TFLOP/s | GB | GB/s | W |", "|---|---|---|---|---|"]
    for card in CARDS:
        precision = " (float32)" if card.precision == "float32" else ""
        cells = [card.name, f"{card.tflops:,g}{precision}", f"{card.gigabytes:g}", f"{card.gigabytes_per_second:,g}"]
        lines.append(f"| {' | '.join(cells)} | {card.watts:g} |")
    return lines


def recipe_table() -> list[str]:
    """Return a table of the estimates for both full-size recipes."""
    lines = [
        "| |",
        "|---|",
        "| memory of a GPU |",
        *(f"| {ranks} × {card_name} |" for card_name, ranks in MACHINES),
    ]
    for name in RECIPES:
        found = [recipe_estimate(name, card_name, ranks) for card_name, ranks in MACHINES]
        cells = [
            f" {name}, hours | kWh |",
            "---|---|",
            f" {found[0].memory.total / 1e9:.1f} GB | |",
            *(f" {number_range(*one.hours)} | {number_range(*one.kilowatt_hours)} |" for one in found),
        ]
        lines = [line + more for line, more in zip(lines, cells, strict=True)]
    return lines


def recipe_estimate(name: str, card_name: str, ranks: int, *settings: str) -> Estimate:
    """Return the estimate for a recipe with its own micro-batch."""
    recipe = load_recipe(name, settings)
    found = estimate(recipe, ranks, Hardware(find_card(card_name)), recipe.data.micro_batch)
    assert found is not None, f"{name} does not fit {card_name}"
    return found


if __name__ == "__main__":
    for table in (fit_table(), elsewhere_table(), published_table(), recipe_table(), card_table()):
        print("\n".join(table), end="\n\n")
