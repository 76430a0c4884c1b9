"""Cards are found by the names that people and drivers use."""

import pytest

from regpt.base.cards import CARDS, card_of_device, find_card
from regpt.base.errors import UserError


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("RTX 5090", "RTX 5090"),
        ("5090", "RTX 5090"),
        ("rtx4090", "RTX 4090"),
        ("a100", "A100 80GB"),
        ("A100 40GB", "A100 40GB"),
        ("a100 pcie", "A100 PCIe 80GB"),
        ("H100 SXM", "H100"),
        ("h100-pcie", "H100 PCIe"),
        ("NVIDIA GeForce RTX 4080", "RTX 4080"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("4070 Ti Super", "RTX 4070 Ti SUPER"),
        ("Tesla T4", "T4"),
        ("v100", "V100 16GB"),
        ("V100 PCIe", "V100 PCIe 16GB"),
        ("Apple M1 Max", "M1 Max"),
        ("m2 ultra", "M2 Ultra"),
        *((card.name, card.name) for card in CARDS),
    ],
)
def test_card_is_found_by_names_that_people_use(written: str, meant: str) -> None:
    assert find_card(written).name == meant


@pytest.mark.parametrize("written", ["RTX 6090", "", "x", "RTX", "NVIDIA", "RTX 4070", "4060"])
def test_unknown_card_is_refused_with_the_known_ones(written: str) -> None:
    with pytest.raises(UserError, match=r"no such card.*RTX 5090.*MI300X"):
        find_card(written)


@pytest.mark.parametrize(
    ("said", "gigabytes", "card"),
    [
        ("NVIDIA GeForce RTX 3090", 25.3, "RTX 3090"),
        ("NVIDIA GeForce RTX 3090 Ti", 25.3, None),
        ("NVIDIA GeForce RTX 4090 D", 25.3, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 17.2, None),
        ("NVIDIA GeForce RTX 4080 SUPER", 17.2, "RTX 4080 SUPER"),
        ("NVIDIA GeForce RTX 4080", 17.2, "RTX 4080"),
        ("NVIDIA A100-SXM4-80GB", 85.0, "A100 80GB"),
        ("NVIDIA A100-SXM4-40GB", 42.4, "A100 40GB"),
        ("NVIDIA A100-PCIE-40GB", 42.4, "A100 PCIe 40GB"),
        ("NVIDIA A100 80GB PCIe", 85.0, "A100 PCIe 80GB"),
        ("NVIDIA H100 80GB HBM3", 85.0, "H100"),
        ("NVIDIA H100 PCIe", 85.0, "H100 PCIe"),
        ("NVIDIA H100 80GB HBM3 MIG 3g.40gb", 42.0, None),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", 10.5, None),
        ("NVIDIA H100 NVL", 100.0, "H100 NVL"),
        ("NVIDIA A10G", 24.1, None),
        ("NVIDIA L40S", 47.7, "L40S"),
        ("NVIDIA RTX A6000", 51.0, "RTX A6000"),
        ("NVIDIA RTX 6000 Ada Generation", 51.0, "RTX 6000 Ada"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 102.0, "RTX PRO 6000 Blackwell"),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", 102.0, None),
        ("Tesla T4", 15.8, "T4"),
        ("Tesla V100-SXM2-16GB", 16.9, "V100 16GB"),
        ("Tesla V100-SXM2-32GB", 34.1, "V100 32GB"),
        ("Tesla V100-PCIE-32GB", 34.1, "V100 PCIe 32GB"),
    ],
)
def test_card_is_found_by_the_name_of_its_driver(said: str, gigabytes: float, card: str | None) -> None:
    found = card_of_device(said, gigabytes)
    assert (found and found.name) == card


def test_cards_are_unique_and_have_a_source() -> None:
    assert len({card.name for card in CARDS}) == len({card.words for card in CARDS}) == len(CARDS)
    assert all(card.source and card.peak > 1e12 and card.memory > 1e9 and card.bandwidth > 6e10 for card in CARDS)


@pytest.mark.parametrize(("name", "tflops"), [("T4", 8.1), ("V100", 15.7), ("M1 Max", 10.4), ("M2", 3.6)])
def test_peak_of_a_card_without_bfloat16_is_in_float32(name: str, tflops: float) -> None:
    card = find_card(name)
    assert card.precision == "float32" and card.tflops == tflops
    assert find_card("RTX 3060").precision == "bfloat16"
