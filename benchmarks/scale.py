"""Print the table of docs/scale.md: estimates for three models on 1, 8, 64 and 512 cards.

python -m benchmarks.scale
"""

from dataclasses import replace

from regpt.base.cards import find_card
from regpt.plan.estimate import Estimate, Hardware, estimate
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import load_recipe

H100 = Hardware(find_card("H100"), usd_per_hour=2.5)  # an assumed rental price

XL = "model.n_layer=48 model.n_head=25 model.n_embd=1600 model.mlp_hidden=4288"
LLAMA = "model.n_layer=32 model.n_head=32 model.n_embd=4096 model.mlp_hidden=11008 model.tied_head=false"
MODELS = {  # name: (settings, tokens)
    "124 M": ("", 20e9),
    "1.5 B": (f"{XL} data.micro_batch=1 data.total_batch_tokens=1048576", 30e9),
    "7 B": (
        f"{LLAMA} model.block_size=2048 data.micro_batch=1 data.total_batch_tokens=4194304"
        " run.activation_checkpointing=true",
        140e9,
    ),
}
CARDS = (1, 8, 64, 512)


def build_recipe(name: str) -> Recipe:
    settings, tokens = MODELS[name]
    recipe = load_recipe("gpt2-modern", settings.split())
    return replace(recipe, run=replace(recipe.run, max_steps=round(tokens / recipe.data.total_batch_tokens)))


def table() -> list[str]:
    lines = [
        "| model | GPUs | mode | GB per GPU | computing, s per step | network, s | days | USD |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in MODELS:
        recipe = build_recipe(name)
        for ranks in CARDS:
            found = estimate(recipe, ranks, H100)
            lines.append(row(name, ranks, found))
    return lines


def row(name: str, ranks: int, found: Estimate | None) -> str:
    if found is None:
        return f"| {name} | {ranks} | does not fit | | | | | |"
    cells = [
        name,
        f"{ranks}",
        ("fsdp" if found.layout.sharded else "ddp") if ranks > 1 else "alone",
        f"{found.memory.total / 1e9:.0f}",
        spread(found.compute_seconds),
        f"{found.network_seconds:.2g}" if ranks > 1 else "—",
        spread(tuple(hours / 24 for hours in found.hours)),
        spread(found.usd) if found.usd is not None else "—",
    ]
    return f"| {' | '.join(cells)} |"


def spread(values: tuple[float, ...]) -> str:
    low, high = min(values), max(values)
    return f"{short(low)} to {short(high)}"


def short(value: float) -> str:
    return f"{float(f'{value:.2g}'):,.0f}" if value >= 10 else f"{value:.2g}"


if __name__ == "__main__":
    for name in MODELS:
        model = build_recipe(name).model
        print(f"{name}: {model.parameters:,} parameters, {model.flops_per_token:,} FLOPs per token")
    print("\n".join(table()))
