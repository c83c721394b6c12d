"""Published figures of the paper and its one public reproduction, each with its source.

All are top-1 accuracies in percent with ViT-B/32 pre-trained on ImageNet-21k. Data sets go by memtok's names, columns
by those of `memtok reproduce`. Not known, and therefore not here: whether Table 2 was made with the attention mask
(without it is likelier), its learning rates, its resolution, the version of iNaturalist, the splits and the spread over
seeds; nor figures for propagated or additive memory, for other backbones, and for extensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SOURCES: dict[str, str] = {
    "paper": "Sandler, Zhmoginov, Vladymyrov, Jackson: Fine-tuning Image Transformers using Learnable Memory, "
    "CVPR 2022, arXiv 2203.15243, Table 2",
    "reproduction": "github.com/necrashter/transformers-learnable-memory, README, Table 3 (1 cell, batch 64)",
    "second-hand": "second-hand account of separately trained memories put side by side without a mask",
}
BACKBONE = "ViT-B/32, ImageNet-21k"

# Table 2 of the paper.
COLUMNS = ("full", "head", "class", "memory-1", "memory-5", "memory-10", "memory-20")
PAPER: dict[str, dict[str, float]] = {
    data: dict(zip(COLUMNS, figures, strict=True))
    for data, figures in {
        "sun397": (76.9, 75.9, 76.4, 77.0, 76.8, 76.9, 76.9),
        "inaturalist2017": (54.0, 46.3, 48.7, 49.4, 50.1, 50.0, 50.0),
        "cifar100": (91.8, 85.8, 88.6, 90.9, 91.0, 91.1, 90.9),
        "places365": (55.9, 50.9, 52.4, 53.3, 53.8, 53.9, 54.1),
    }.items()
}

# Table 3 of the reproduction's README. It has only this column, 1 cell, and always uses the mask. Its CIFAR-100 was
# *evaluated* under random crops, its SUN-397 and iNaturalist partly on images that it had trained on.
REPRODUCTION_COLUMN = "memory-1"
REPRODUCTION: dict[str, float] = {
    "sun397": 80.96,
    "inaturalist2017": 58.70,
    "cifar100": 64.08,
    "places365": 50.47,
}

# Steps of 64 images, from the same README, section 3.1.3.
REPRODUCTION_STEPS: dict[str, int] = {
    "sun397": 13_600,
    "inaturalist2017": 84_400,
    "cifar100": 15_640,
    "places365": 84_560,
}


@dataclass(frozen=True, kw_only=True)
class ConcatFigures:
    """Accuracy of the task `data` in percent: `alone`, and beside another one without a mask, by the other's data."""

    data: str
    alone: float
    unmasked: Mapping[str, float]


# Source: SOURCES["second-hand"]. How many cells is not said; 50.0 is what Table 2 has for 10 and for 20.
CONCAT_UNMASKED = ConcatFigures(
    data="inaturalist2017",
    alone=50.0,
    unmasked={"places365": 28.1, "cifar100": 27.8, "sun397": 17.3},
)

UNMASKED = "-unmasked"


def published(data: str, column: str) -> dict[str, float]:
    """The published figures of a data source and a column: {"paper": percent, "reproduction": percent} as far as known.

    A column without the mask gets the paper's figure too, because Table 2 may be either. Empty for anything unknown.
    """
    found: dict[str, float] = {}
    paper = PAPER.get(data, {}).get(column.removesuffix(UNMASKED))
    if paper is not None:
        found["paper"] = paper
    if column == REPRODUCTION_COLUMN and data in REPRODUCTION:
        found["reproduction"] = REPRODUCTION[data]
    return found
