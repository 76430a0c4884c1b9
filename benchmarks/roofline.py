"""Print the tables of docs/plan.md: the roofline fit, published speeds, both recipes on five machines, and all cards.

python -m benchmarks.roofline
"""

from benchmarks.published_speeds import ELSEWHERE, MODELS, PUBLISHED, Speed, fit_constants, split_for_fit
from regpt.base.cards import CARDS, find_card
from regpt.base.format import number_range, three_digits
from regpt.base.settings import load_recipe
from regpt.plan.estimate import Hardware, estimate
from regpt.plan.roofline import seconds_per_token

RECIPES = ("gpt2-classic", "gpt2-modern")
MACHINES = (("RTX 5090", 1), ("RTX 4090", 1), ("RTX 3090", 4), ("A100 80GB", 1), ("H100", 8))
# Published tokens/s of one card with a 124M model, for comparison.
KNOWN = {
    "RTX 5090": "123,000 to 159,000 expected",
    "RTX 4090": "110,000",
    "RTX 3090": "63,000 by the record of run 230126",
    "A100 80GB": "218,000",
    "H100": "450,000",
}


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


def predicted(speed: Speed, share: float, passes: float) -> float:
    """Return the predicted tokens/s for given constants."""
    return 1 / seconds_per_token(MODELS[speed.model], find_card(speed.card), share, passes)


def card_table() -> list[str]:
    """Return a table of all known cards. `regpt/base/cards.py` has the source of each peak."""
    lines = ["| card | TFLOP/s, bfloat16 | GB | GB/s | W |", "|---|---|---|---|---|"]
    for card in CARDS:
        cells = [card.name, f"{card.tflops:,g}", f"{card.gigabytes:g}", f"{card.gigabytes_per_second:,g}"]
        lines.append(f"| {' | '.join(cells)} | {card.watts:g} |")
    return lines


def recipe_table() -> list[str]:
    """Return a table of the estimates for both full-size recipes."""
    lines = [
        "| recipe | on | micro-batch × accumulation | memory of a card | formula, tokens/s of a card | published"
        " | range, all cards | hours | kWh |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in RECIPES:
        recipe = load_recipe(name)
        for card_name, ranks in MACHINES:
            card = find_card(card_name)
            found = estimate(recipe, ranks, Hardware(card), recipe.data.micro_batch)
            assert found is not None, f"{name} does not fit {card_name}"
            cells = [
                name,
                f"{ranks} × {card.name}",
                f"{found.layout.micro_batch} × {found.layout.accumulation}",
                f"{found.memory.total / 1e9:.1f} of {card.gigabytes:g} GB",
                three_digits(1 / seconds_per_token(recipe.model, card)),
                KNOWN[card_name],
                number_range(*found.tokens_per_second),
                number_range(*found.hours),
                number_range(*found.kilowatt_hours),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    for table in (fit_table(), elsewhere_table(), recipe_table(), card_table()):
        print("\n".join(table), end="\n\n")
