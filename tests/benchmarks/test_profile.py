"""Operations of a training step are counted in the part that they belong to, and all of them once."""

import pytest

from benchmarks.profile import (
    ELEMENTWISE,
    HEAD,
    HEAD_LOSS,
    ORDER,
    OTHER,
    PRODUCTS,
    Operation,
    Profile,
    profile_of,
    table,
)
from benchmarks.step import SIZES, our_step

VOCABULARY = 50_304


@pytest.mark.parametrize(
    ("name", "shapes", "kind"),
    [
        ("aten::mm", ((320, 128), (128, VOCABULARY)), HEAD),
        ("aten::addmm_", ((VOCABULARY, 128), (VOCABULARY, 320), (320, 128)), HEAD),
        ("aten::mm", ((4096, 128), (128, 384)), PRODUCTS),
        ("aten::exp_", ((320, VOCABULARY),), HEAD_LOSS),
        ("aten::copy_", ((320, VOCABULARY), (320, VOCABULARY)), HEAD_LOSS),
        ("aten::copy_", ((VOCABULARY, 128), (VOCABULARY, 128)), "copies and casts"),
        ("aten::mul", ((16, 256, 128), (128,)), ELEMENTWISE),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", ((16, 4, 256, 32),), "attention"),
        ("aten::baddbmm", ((64, 128, 35), (64, 35, 256)), "attention"),
        ("aten::_fused_adamw_", (), "optimizer and clipping"),
        ("aten::embedding_dense_backward", (), "embedding"),
        ("something", (), OTHER),
    ],
)
def test_operation_belongs_to_a_part(name: str, shapes: tuple[tuple[int, ...], ...], kind: str) -> None:
    assert Operation(name, shapes, 1.0).kind(VOCABULARY) == kind and kind in ORDER


def test_table_gives_the_share_of_each_part() -> None:
    found = Profile(
        [Operation("aten::mm", ((8, 4), (4, 4)), 6.0), Operation("aten::exp_", ((8, 50_304),), 2.0)], 12.0, 9.0, 0.625
    )
    lines = table({"7M float32": found}).splitlines()
    assert f"| {PRODUCTS} | 75.0% |" in lines and f"| {HEAD_LOSS} | 25.0% |" in lines
    assert f"| {HEAD} | 0.0% |" in lines and lines[-4:] == [
        "| milliseconds, sum | 8 |",
        "| milliseconds, not profiled | 9 |",
        "| share of the matmul rate | 0.62 |",
        "| page faults, profiled | 12 |",
    ]


@pytest.mark.slow
def test_step_of_the_miniature_has_every_part() -> None:
    size = SIZES["7M"]
    found = profile_of(our_step(size.model, size, "bfloat16", "off"), steps=1).kinds(size.model.vocab_size)
    assert [part for part in ORDER if found.get(part, 0.0) == 0.0] == []
