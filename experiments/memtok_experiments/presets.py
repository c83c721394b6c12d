"""Presets: one function per published experiment, with its command, the published figures and the expected range.

Nobody has run these with memtok yet: they take weeks of a GPU. A range is therefore not measured. It is the published
figure, or the span between two published ones, widened by `MARGIN` points on either side for what differs and is not
known (seeds, learning rates, splits, exact weights). Check a result outside it, but it need not be wrong.

The paper gives ViT-B/32 pre-trained on ImageNet-21k, but not which weights. The presets of its Table 2 take timm's
`vit_base_patch32_224.augreg_in21k`; the public reproduction used `google/vit-base-patch32-224-in21k`, and its presets
take the same. This module imports neither torch nor timm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from memtok.errors import MemtokError
from memtok_experiments.columns import PAPER_COLUMNS, find_column
from memtok_experiments.published import (
    CONCAT_UNMASKED,
    PAPER,
    REPRODUCTION,
    REPRODUCTION_COLUMN,
    REPRODUCTION_STEPS,
    SOURCES,
    UNMASKED,
)

MARGIN = 3.0  # points


@dataclass(frozen=True)
class Shape:
    """The shape of a backbone: layers, width and patch side in pixels."""

    name: str
    depth: int
    dim: int
    patch: int

    def __str__(self) -> str:
        return f"{self.name} (depth {self.depth}, dim {self.dim}, patch {self.patch})"


VIT_B_32 = Shape("ViT-B/32", 12, 768, 32)
VIT_B_16 = Shape("ViT-B/16", 12, 768, 16)
VIT_L_32 = Shape("ViT-L/32", 24, 1024, 32)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A published experiment as arguments of `memtok reproduce EXPERIMENT`.

    experiment: `table2`, `architectures`, `concat` or `extension`. backbones, data, columns: what the grid spans (the
    last two experiments take one number of cells, `memory`, in place of columns).
    steps, image_size, split, learning_rates: None means the default of the recipe, checkpoint, data set and grid.
    expected: lowest and highest accuracy by column (in `concat`: `alone`, `masked`, `unmasked`), published: the
    published one; both in percent, and empty where nothing is published. needs: a backbone must have one of these
    shapes.
    """

    name: str
    experiment: str = "table2"
    backbones: tuple[str, ...] = ("vit_base_patch32_224.augreg_in21k",)
    data: tuple[str, ...]
    columns: tuple[str, ...] = PAPER_COLUMNS
    recipe: str = "paper"
    steps: int | None = None
    image_size: int | None = 224
    split: str | None = None
    learning_rates: tuple[float, ...] | None = None
    expected: dict[str, tuple[float, float]] = field(default_factory=dict)
    published: dict[str, float] = field(default_factory=dict)
    source: str = SOURCES["paper"]
    needs: tuple[Shape, ...] = (VIT_B_32,)

    @property
    def memory(self) -> int | None:
        """Cells per layer of `concat` and `extension`; None for the others."""
        return find_column(self.columns[0]).cells if self.experiment in ("concat", "extension") else None

    @property
    def command(self) -> str:
        """The command that runs it."""
        return f"memtok reproduce {self.experiment} --preset {self.name} --out DIR"

    @property
    def spelled(self) -> str:
        """The same without `--preset`."""
        options: dict[str, tuple[object, ...]] = {
            "backbone": self.backbones,
            "data": self.data,
            "columns": self.columns if self.memory is None else (),
            "memory": () if self.memory is None else (self.memory,),
            "recipe": (self.recipe,),
            "steps": () if self.steps is None else (self.steps,),
            "image-size": () if self.image_size is None else (self.image_size,),
            "split": () if self.split is None else (self.split,),
            "learning-rates": () if self.learning_rates is None else self.learning_rates,
        }
        words = (f"--{name} {' '.join(map(str, values))}" for name, values in options.items() if values)
        return f"memtok reproduce {self.experiment} {' '.join(words)} --out DIR"

    def check_backbone(self, backbone: Any) -> Shape:
        """The shape that a `memtok.Backbone` fits; MemtokError in one line if it fits none."""
        patch = tuple(backbone.vit.patch_embed.patch_size)
        for shape in self.needs:
            if (backbone.depth, backbone.dim, patch) == (shape.depth, shape.dim, (shape.patch, shape.patch)):
                return shape
        side = str(patch[0]) if len(set(patch)) == 1 else " x ".join(map(str, patch))
        raise MemtokError(
            f"expected {' or '.join(map(str, self.needs))} for preset {self.name}, found {backbone.source} of depth "
            f"{backbone.depth}, dim {backbone.dim}, patch {side}; take {' or '.join(self.backbones)}, or leave out "
            "--preset"
        )

    def within(self, column: str, percent: float) -> bool | None:
        """Whether an accuracy in percent lies in the expected range; None if none is known."""
        bounds = self.expected.get(column) or self.expected.get(column.removesuffix(UNMASKED))
        return None if bounds is None else bounds[0] <= percent <= bounds[1]


def span(*figures: float) -> tuple[float, float]:
    """From `MARGIN` points below the lowest figure to as many above the highest, in percent."""
    return round(max(0.0, min(figures) - MARGIN), 2), round(min(100.0, max(figures) + MARGIN), 2)


def _paper(data: str) -> Preset:
    return Preset(
        name=f"paper-{data}",
        data=(data,),
        published=PAPER[data],
        expected={column: span(figure) for column, figure in PAPER[data].items()},
    )


def _reproduction(data: str, split: str) -> Preset:
    figure = REPRODUCTION[data]
    return Preset(
        name=f"reproduction-{data}",
        backbones=("google/vit-base-patch32-224-in21k",),
        data=(data,),
        columns=(REPRODUCTION_COLUMN,),
        recipe="reproduction",
        steps=REPRODUCTION_STEPS[data],
        split=split,
        learning_rates=(0.1,),
        published={REPRODUCTION_COLUMN: figure},
        # Its faults raise the figure (validation images in training) or lower it (random crops in the test), so a
        # correct result should be between it and the paper's.
        expected={REPRODUCTION_COLUMN: span(figure, PAPER[data][REPRODUCTION_COLUMN])},
        source=SOURCES["reproduction"],
    )


def _concat(other: str) -> Preset:
    data, alone, together = CONCAT_UNMASKED.data, CONCAT_UNMASKED.alone, CONCAT_UNMASKED.unmasked[other]
    return Preset(
        name=f"concat-{data}-{other}",
        experiment="concat",
        data=(data, other),
        columns=("memory-10", "memory-10-unmasked"),
        published={"alone": alone, "unmasked": together},
        # The loss of accuracy without the mask depends on both trainings; only that there is one is expected.
        expected={"alone": span(alone), "masked": span(alone), "unmasked": (0.0, span(alone)[0])},
        source=SOURCES["second-hand"],
    )


def paper_sun397() -> Preset:
    """Table 2 of the paper, SUN-397.

    memtok reproduce table2 --preset paper-sun397 --out DIR

    Published: full 76.9, head 75.9, head + class 76.4, 1 cell 77.0, 5 cells 76.8, 10 cells 76.9, 20 cells 76.9.
    Range: each 3 points less to 3 more. The paper does not say how it split the data.
    """
    return _paper("sun397")


def paper_inaturalist2017() -> Preset:
    """Table 2 of the paper, iNaturalist; that it is the version of 2017 is the public reproduction's assumption.

    memtok reproduce table2 --preset paper-inaturalist2017 --out DIR

    Published: full 54.0, head 46.3, head + class 48.7, 1 cell 49.4, 5 cells 50.1, 10 cells 50.0, 20 cells 50.0.
    Range: each 3 points less to 3 more.
    """
    return _paper("inaturalist2017")


def paper_cifar100() -> Preset:
    """Table 2 of the paper, CIFAR-100.

    memtok reproduce table2 --preset paper-cifar100 --out DIR

    Published: full 91.8, head 85.8, head + class 88.6, 1 cell 90.9, 5 cells 91.0, 10 cells 91.1, 20 cells 90.9.
    Range: each 3 points less to 3 more.
    """
    return _paper("cifar100")


def paper_places365() -> Preset:
    """Table 2 of the paper, Places-365.

    memtok reproduce table2 --preset paper-places365 --out DIR

    Published: full 55.9, head 50.9, head + class 52.4, 1 cell 53.3, 5 cells 53.8, 10 cells 53.9, 20 cells 54.1.
    Range: each 3 points less to 3 more.
    """
    return _paper("places365")


def reproduction_sun397() -> Preset:
    """The public reproduction on SUN-397: 1 cell, 13,600 steps of 64, an 80/20 split.

    memtok reproduce table2 --preset reproduction-sun397 --out DIR

    Published: 80.96, partly on images that were trained on; the paper has 77.0. Range: 74.0 to 83.96.
    """
    return _reproduction("sun397", "80-20")


def reproduction_inaturalist2017() -> Preset:
    """The public reproduction on iNaturalist-2017: 1 cell, 84,400 steps of 64, an 80/20 split.

    memtok reproduce table2 --preset reproduction-inaturalist2017 --out DIR

    Published: 58.70, partly on images that were trained on; the paper has 49.4. Range: 46.4 to 61.7.
    """
    return _reproduction("inaturalist2017", "80-20")


def reproduction_cifar100() -> Preset:
    """The public reproduction on CIFAR-100: 1 cell, 15,640 steps of 64.

    memtok reproduce table2 --preset reproduction-cifar100 --out DIR

    Published: 64.08, on random crops of the test images; the paper has 90.9. Range: 61.08 to 93.9, more likely high.
    """
    return _reproduction("cifar100", "official")


def reproduction_places365() -> Preset:
    """The public reproduction on Places-365: 1 cell, 84,560 steps of 64.

    memtok reproduce table2 --preset reproduction-places365 --out DIR

    Published: 50.47; the paper has 53.3. Range: 47.47 to 56.3.
    """
    return _reproduction("places365", "official")


def paper_architectures() -> Preset:
    """The paper's comparison of backbones: ViT-B/32, ViT-B/16 and ViT-L/32, here on CIFAR-100.

    memtok reproduce architectures --preset paper-architectures --out DIR

    Published: the figures are not known here, so there is no range. The weights are timm's `orig_in21k`, because
    `augreg_in21k` has no ViT-L/32.
    """
    return Preset(
        name="paper-architectures",
        experiment="architectures",
        backbones=(
            "vit_base_patch32_224.orig_in21k",
            "vit_base_patch16_224.orig_in21k",
            "vit_large_patch32_224.orig_in21k",
        ),
        data=("cifar100",),
        needs=(VIT_B_32, VIT_B_16, VIT_L_32),
    )


def concat_inaturalist2017_places365() -> Preset:
    """iNaturalist and Places-365, trained separately and composed, with and without the mask.

    memtok reproduce concat --preset concat-inaturalist2017-places365 --out DIR

    Published (second-hand, iNaturalist): 50.0 alone, 28.1 without the mask. With the mask it must be as alone, to the
    last digit. Range: alone 47.0 to 53.0, without the mask anything below 47.0. The number of cells is not said;
    Table 2 has 50.0 for 10 and for 20, and the preset takes 10.
    """
    return _concat("places365")


def concat_inaturalist2017_cifar100() -> Preset:
    """iNaturalist and CIFAR-100, trained separately and composed, with and without the mask.

    memtok reproduce concat --preset concat-inaturalist2017-cifar100 --out DIR

    Published (second-hand, iNaturalist): 50.0 alone, 27.8 without the mask. The rest is as with Places-365.
    """
    return _concat("cifar100")


def concat_inaturalist2017_sun397() -> Preset:
    """iNaturalist and SUN-397, trained separately and composed, with and without the mask.

    memtok reproduce concat --preset concat-inaturalist2017-sun397 --out DIR

    Published (second-hand, iNaturalist): 50.0 alone, 17.3 without the mask. The rest is as with Places-365.
    """
    return _concat("sun397")


def extension() -> Preset:
    """Tasks that extend one another, mixed with concatenation: CIFAR-100, SUN-397 and Places-365, 5 cells each.

    memtok reproduce extension --preset extension --out DIR

    Published: no figure is known here, so there is no range. What must hold: the accuracy of every earlier task stays
    the same to the last digit.
    """
    return Preset(
        name="extension",
        experiment="extension",
        data=("cifar100", "sun397", "places365"),
        columns=("memory-5",),
    )


# A new preset is a function and an entry here.
PRESETS: dict[str, Callable[[], Preset]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        paper_sun397,
        paper_inaturalist2017,
        paper_cifar100,
        paper_places365,
        reproduction_sun397,
        reproduction_inaturalist2017,
        reproduction_cifar100,
        reproduction_places365,
        paper_architectures,
        concat_inaturalist2017_places365,
        concat_inaturalist2017_cifar100,
        concat_inaturalist2017_sun397,
        extension,
    )
}


def find_preset(name: str) -> Preset:
    """The preset of this name; MemtokError for another."""
    if name not in PRESETS:
        raise MemtokError(
            f"expected a preset among {', '.join(PRESETS)}, found {name!r}; choose one of these", argument="preset"
        )
    return PRESETS[name]()
