"""Known GPUs: peak, memory, bandwidth and power, each with its source. Finds a card by its name."""

import difflib
import re
from dataclasses import dataclass
from typing import Literal

from regpt.base.errors import UserError

# Sources of the figures. Peaks are dense bfloat16 with float32 accumulation: sheets often print twice that (sparse),
# or, for GeForce, twice that again (float16 accumulation). Cards that do not multiply bfloat16 have their float32 peak.
BLACKWELL = "NVIDIA RTX Blackwell whitepaper, table 3"
ADA = "NVIDIA Ada whitepaper 2.1, appendix A"
GA102 = "NVIDIA GA102 whitepaper 2, appendix A"
PRO = "NVIDIA RTX PRO Blackwell whitepaper 1.0, table 4"
CLOCK = "derived: 4 x CUDA cores x boost clock, which gives the whitepapers' figures of the RTX 3090, 4090 and 5090"
A100_SHEET = "NVIDIA A100 data sheet"
H100_SHEET = "NVIDIA H100 data sheet"
UNSAID = "data sheet; it does not say in what products are added up, and half of it may be true"
T4_SHEET = "NVIDIA T4 data sheet"
V100_SHEET = "NVIDIA V100 data sheet"
APPLE = "Apple's announcement of the chip"
M1_TWICE = "two M1 Max, by Apple's announcement"
M2_CORES = "derived: Apple's 3.6 TFLOP/s of the M2's 10 GPU cores x 1.9, 3.8 or 7.6"

NVLINK_V100 = 150e9  # bytes/s, one direction
NVLINK_A100, NVLINK_H100, NVLINK_B200 = 300e9, 450e9, 900e9  # bytes/s, one direction
PCIE_3, PCIE_4, PCIE_5 = 16e9, 32e9, 64e9
ETHERNET = 1.25e9  # between two Macs


@dataclass(frozen=True)
class Card:
    """One kind of card."""

    name: str
    tflops: float  # peak of dense products in `precision` with float32 accumulation, 1e12 FLOP/s
    gigabytes: float  # memory, 1e9 bytes
    gigabytes_per_second: float  # to its memory
    watts: float  # board power
    link: float  # bytes/s to another card of the same machine, one direction
    source: str  # of the peak
    precision: Literal["bfloat16", "float32"] = "bfloat16"  # in which regpt trains on it

    @property
    def is_compiled_for(self) -> bool:
        """Return whether run.compile=auto compiles on it: not on Apple's chips."""
        return self.link != ETHERNET

    @property
    def peak(self) -> float:
        """Return the peak in FLOP/s."""
        return self.tflops * 1e12

    @property
    def memory(self) -> float:
        """Return the memory in bytes."""
        return self.gigabytes * 1e9

    @property
    def bandwidth(self) -> float:
        """Return the memory bandwidth in bytes/s."""
        return self.gigabytes_per_second * 1e9

    @property
    def between(self) -> float:
        """Return the bytes/s of each card to other machines: 400 Gbit/s as in a DGX, 10 Gbit/s without NVLink."""
        return 50e9 if self.link > PCIE_5 else ETHERNET

    @property
    def words(self) -> frozenset[str]:
        return words_of(self.name)


CARDS = (
    Card("RTX 3060", 25.5, 12, 360, 170, PCIE_4, CLOCK),
    Card("RTX 3080", 59.5, 10, 760, 320, PCIE_4, CLOCK),
    Card("RTX 3090", 71.2, 24, 936, 350, PCIE_4, BLACKWELL),
    Card("RTX 4060 Ti", 44.1, 16, 288, 165, PCIE_4 / 2, CLOCK),
    Card("RTX 4070 Ti SUPER", 88.2, 16, 672, 285, PCIE_4, CLOCK),
    Card("RTX 4080", 97.5, 16, 717, 320, PCIE_4, CLOCK),
    Card("RTX 4080 SUPER", 104.5, 16, 736, 320, PCIE_4, CLOCK),
    Card("RTX 4090", 165.2, 24, 1008, 450, PCIE_4, ADA),
    Card("RTX 5070 Ti", 87.9, 16, 896, 300, PCIE_5, CLOCK),
    Card("RTX 5080", 112.6, 16, 960, 360, PCIE_5, CLOCK),
    Card("RTX 5090", 209.5, 32, 1792, 575, PCIE_5, BLACKWELL),
    Card("RTX A6000", 154.8, 48, 768, 300, PCIE_4, GA102),
    Card("RTX 6000 Ada", 364.0, 48, 960, 300, PCIE_4, PRO),
    Card("RTX PRO 6000 Blackwell", 503.8, 96, 1792, 600, PCIE_5, PRO),
    Card("T4", 8.1, 16, 320, 70, PCIE_3, T4_SHEET, "float32"),
    Card("V100 16GB", 15.7, 16, 900, 300, NVLINK_V100, V100_SHEET, "float32"),
    Card("V100 32GB", 15.7, 32, 900, 300, NVLINK_V100, V100_SHEET, "float32"),
    Card("V100 PCIe 16GB", 14.0, 16, 900, 250, PCIE_3, V100_SHEET, "float32"),
    Card("V100 PCIe 32GB", 14.0, 32, 900, 250, PCIE_3, V100_SHEET, "float32"),
    Card("A10", 125.0, 24, 600, 150, PCIE_4, UNSAID),
    Card("A40", 149.7, 48, 696, 300, PCIE_4, "NVIDIA A40 data sheet"),
    Card("L4", 121.0, 24, 300, 72, PCIE_4, UNSAID),
    Card("L40S", 362.0, 48, 864, 350, PCIE_4, UNSAID),
    Card("A100 40GB", 312.0, 40, 1555, 400, NVLINK_A100, A100_SHEET),
    Card("A100 80GB", 312.0, 80, 2039, 400, NVLINK_A100, A100_SHEET),
    Card("A100 PCIe 40GB", 312.0, 40, 1555, 250, PCIE_4, A100_SHEET),
    Card("A100 PCIe 80GB", 312.0, 80, 1935, 300, PCIE_4, A100_SHEET),
    Card("H100 PCIe", 756.0, 80, 2000, 350, PCIE_5, H100_SHEET),
    Card("H100 NVL", 835.5, 94, 3938, 400, PCIE_5, "NVIDIA H100 NVL product brief PB-11773"),
    Card("H100", 989.4, 80, 3350, 700, NVLINK_H100, H100_SHEET),
    Card("H200", 989.4, 141, 4800, 700, NVLINK_H100, "NVIDIA H200 data sheet"),
    Card("GH200", 989.4, 96, 4000, 700, NVLINK_H100, "NVIDIA GH200 data sheet"),
    Card("B200", 2250.0, 180, 7700, 1000, NVLINK_B200, "NVIDIA HGX B200 data sheet"),
    Card("MI300X", 1307.4, 192, 5300, 750, 64e9, "AMD MI300X data sheet"),
    # Apple: memory of the largest configuration; power of a whole Mac, of the M1 Pro of its charger. Apple publishes no
    # peak of the M3 and later.
    Card("M1", 2.6, 16, 68, 39, ETHERNET, APPLE, "float32"),
    Card("M1 Pro", 5.2, 32, 200, 67, ETHERNET, APPLE, "float32"),
    Card("M1 Max", 10.4, 64, 400, 115, ETHERNET, APPLE, "float32"),
    Card("M1 Ultra", 20.8, 128, 800, 215, ETHERNET, M1_TWICE, "float32"),
    Card("M2", 3.6, 24, 100, 50, ETHERNET, APPLE, "float32"),
    Card("M2 Pro", 6.8, 32, 200, 100, ETHERNET, M2_CORES, "float32"),
    Card("M2 Max", 13.6, 96, 400, 145, ETHERNET, M2_CORES, "float32"),
    Card("M2 Ultra", 27.2, 192, 800, 295, ETHERNET, M2_CORES, "float32"),
)
DEFAULT_OF = {  # the choice for a name that fits several cards
    "A100": "A100 80GB",
    "A100 PCIE": "A100 PCIe 80GB",
    "V100": "V100 16GB",
    "PCIE V100": "V100 PCIe 16GB",
}
SIZES = {"16GB", "32GB", "40GB", "80GB"}  # of memory, which some names state
# Words in a device name that distinguish a card from the one without them.
VARIANTS = SIZES | {"LAPTOP", "PCIE", "NVL", "TI", "SUPER", "D", "MAX", "Q", "ADA", "PRO", "ULTRA", "MIG", "6GB", "8GB"}
MAKERS = {"NVIDIA", "GEFORCE", "TESLA", "AMD", "INSTINCT", "APPLE", "SXM", "SXM2", "SXM4", "SXM5", "HBM2", "HBM3"}


def words_of(name: str) -> frozenset[str]:
    """Return the words of a name in capitals; 'rtx4090' has two: RTX and 4090."""
    split = re.sub(r"(?i)\b(rtx|gtx)(?=\d)", r"\1 ", name)
    return frozenset(re.split(r"[\s\-_/]+", split.strip().upper())) - {""}


def find_card(name: str) -> Card:
    """Find a card by a name such as '5090', 'a100' or 'H100 SXM'. Raises UserError with the known names."""
    asked = words_of(name) - MAKERS
    exact = words_of(DEFAULT_OF.get(" ".join(sorted(asked)), "")) or asked
    found = [card for card in CARDS if card.words == exact]
    if any(letter.isdigit() for letter in name):  # 'RTX' alone does not name a card
        found = found or [card for card in CARDS if asked <= card.words and not (card.words - asked) & VARIANTS]
        device = card_of_device(name)
        found = found or ([device] if device else [])
    if found:
        return min(found, key=lambda card: len(card.words))
    near = difflib.get_close_matches(name.upper(), [card.name.upper() for card in CARDS], n=1)
    guess = next((f"did you mean {card.name}? " for card in CARDS if card.name.upper() in near), "")
    raise UserError(f"--gpu '{name}': no such card is known", f"{guess}known are {', '.join(c.name for c in CARDS)}")


def card_of_device(name: str, gigabytes: float = 0.0) -> Card | None:
    """Find a card by its driver's name, such as 'NVIDIA A100-SXM4-80GB'; None if its peak is unknown.

    `gigabytes`, its memory, distinguishes cards with the same name.
    """
    has = words_of(name)
    found = [card for card in CARDS if card.words - SIZES <= has and not (VARIANTS & has) - card.words - SIZES]
    if not found:
        return None
    said = [card for card in found if card.words <= has] or found
    return min(said, key=lambda card: (abs(card.gigabytes - gigabytes) if gigabytes else 0, -len(card.words)))
