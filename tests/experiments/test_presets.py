"""Presets: that they name what exists, say what their docstrings say, and refuse a backbone that does not fit."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import timm
import torch

from memtok.cli.options import build_parser, parse
from memtok.data import check_spec
from memtok.errors import MemtokError
from memtok.training import RECIPES
from memtok_experiments import command as reproduce
from memtok_experiments import presets
from memtok_experiments.columns import find_columns
from memtok_experiments.presets import PRESETS, VIT_B_16, VIT_B_32, VIT_L_32, Preset, find_preset, span
from tests.tiny import tiny_backbone

ALL = [make() for make in PRESETS.values()]
TABLES = [preset for preset in ALL if preset.experiment == "table2"]


@pytest.mark.parametrize("preset", ALL, ids=lambda preset: preset.name)
def test_every_preset_names_what_exists(preset: Preset) -> None:
    assert preset.recipe in RECIPES
    assert find_columns(preset.columns)
    for spec in preset.data:
        check_spec(spec)
    assert preset.experiment in ("table2", "architectures", "concat", "extension")
    assert set(preset.published) <= {*preset.columns, "alone", "unmasked"}
    assert set(preset.expected) >= set(preset.published)
    assert all(0 <= low < high <= 100 for low, high in preset.expected.values())


@pytest.mark.parametrize("name", PRESETS)
def test_the_docstring_has_the_command_and_every_published_figure(name: str) -> None:
    preset, text = find_preset(name), PRESETS[name].__doc__ or ""
    assert preset.name == name
    assert preset.command in text
    assert "Published" in text
    for figure in preset.published.values():
        assert re.search(rf"\b{figure:g}0?\b", text), figure
    if name.startswith("reproduction"):
        (bounds,) = preset.expected.values()
        assert all(re.search(rf"\b{bound:g}\b", text) for bound in bounds)


def test_ranges_reach_three_points_beyond_the_published_figures() -> None:
    assert span(77.0) == (74.0, 80.0)
    assert span(64.08, 90.9) == (61.08, 93.9)
    assert span(1.0) == (0.0, 4.0)
    assert span(99.0) == (96.0, 100.0)
    preset = find_preset("paper-cifar100")
    assert preset.within("memory-1", 90.9) is True
    assert preset.within("memory-1-unmasked", 87.8) is False
    assert preset.within("propagated-5", 90.0) is None
    # The reproduction tested on random crops: what memtok reaches may lie far above its figure, up to the paper's.
    assert find_preset("reproduction-cifar100").within("memory-1", 85.0) is True


def test_what_the_reproduction_did() -> None:
    preset = find_preset("reproduction-sun397")
    assert (preset.steps, preset.columns, preset.split) == (13_600, ("memory-1",), "80-20")
    assert (preset.backbones, preset.learning_rates) == (("google/vit-base-patch32-224-in21k",), (0.1,))
    assert find_preset("reproduction-places365").steps == 84_560
    assert find_preset("reproduction-places365").split == "official"
    assert RECIPES[preset.recipe].learning_rate == 0.1


def test_spelled_out() -> None:
    assert find_preset("paper-cifar100").spelled == (
        "memtok reproduce table2 --backbone vit_base_patch32_224.augreg_in21k --data cifar100 "
        "--columns full head class memory-1 memory-5 memory-10 memory-20 --recipe paper --image-size 224 --out DIR"
    )
    assert find_preset("reproduction-sun397").spelled.endswith(
        "--recipe reproduction --steps 13600 --image-size 224 --split 80-20 --learning-rates 0.1 --out DIR"
    )
    assert find_preset("concat-inaturalist2017-cifar100").spelled.startswith(
        "memtok reproduce concat --backbone vit_base_patch32_224.augreg_in21k "
        "--data inaturalist2017 cifar100 --memory 10"
    )


@pytest.mark.parametrize("preset", ALL, ids=lambda preset: preset.name)
def test_both_commands_ask_for_the_same(preset: Preset) -> None:
    asked = []
    for command in (preset.command, preset.spelled):
        parser = build_parser("reproduce", "reproduces", reproduce.USAGE, reproduce.EXAMPLES)
        reproduce.configure(parser)
        options = parse(parser, command.split()[2:])
        assert options is not None
        reproduce.apply_preset(options)
        filled = ("experiment", "backbone", "data", "recipe", "steps", "image_size", "split", "learning_rates")
        filled += ("memory",) if preset.memory else ("columns",)
        asked.append({name: options[name] for name in (*filled, "out")})
    assert asked[0] == asked[1]
    assert asked[0]["backbone"] == list(preset.backbones)


def test_every_preset_function_is_registered() -> None:
    functions = [
        name
        for name, value in vars(presets).items()
        if callable(value) and getattr(value, "__annotations__", {}).get("return") == "Preset" and name[0] != "_"
    ]
    assert {name.replace("_", "-") for name in functions} - {"find-preset"} == set(PRESETS)


def test_an_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(MemtokError, match="paper-sun397") as error:
        find_preset("paper")
    assert error.value.argument == "preset"


def backbone(depth: int, dim: int, patch: tuple[int, int], source: str = "some/model") -> SimpleNamespace:
    vit = SimpleNamespace(patch_embed=SimpleNamespace(patch_size=patch))
    return SimpleNamespace(depth=depth, dim=dim, vit=vit, source=source)


def test_a_backbone_that_does_not_fit_is_refused_in_one_line() -> None:
    small = backbone(12, 384, (14, 14), "models/dinov2-small")
    with pytest.raises(MemtokError) as error:
        find_preset("paper-cifar100").check_backbone(small)
    assert str(error.value) == (
        "expected ViT-B/32 (depth 12, dim 768, patch 32) for preset paper-cifar100, found models/dinov2-small of depth "
        "12, dim 384, patch 14; take vit_base_patch32_224.augreg_in21k, or leave out --preset"
    )
    with pytest.raises(MemtokError, match=r"patch 32 x 16"):
        find_preset("paper-cifar100").check_backbone(backbone(12, 768, (32, 16)))


def test_a_real_backbone_is_looked_at() -> None:
    with pytest.raises(MemtokError, match=r"found object:VisionTransformer of depth 2, dim 32, patch 8;"):
        find_preset("extension").check_backbone(tiny_backbone())


def test_architectures_take_each_of_three() -> None:
    preset = find_preset("paper-architectures")
    for shape in (VIT_B_32, VIT_B_16, VIT_L_32):
        assert preset.check_backbone(backbone(shape.depth, shape.dim, (shape.patch, shape.patch))) == shape
    with pytest.raises(MemtokError, match=r"ViT-B/32 .* or ViT-B/16 .* or ViT-L/32"):
        preset.check_backbone(backbone(24, 1024, (16, 16)))


@pytest.mark.parametrize(
    ("name", "source"),
    sorted({(preset.name, source) for preset in ALL for source in preset.backbones if "/" not in source}),
)
def test_timm_has_the_backbones_and_they_fit(name: str, source: str) -> None:
    assert source in timm.list_pretrained(source.partition(".")[0] + "*")
    with torch.device("meta"):
        vit = timm.create_model(source, pretrained=False, num_classes=0)
    patch = vit.patch_embed.patch_size
    shape = find_preset(name).check_backbone(backbone(len(vit.blocks), vit.embed_dim, patch, source))
    assert vit.patch_embed.img_size == (find_preset(name).image_size,) * 2
    assert vit.default_cfg["mean"] == (0.5, 0.5, 0.5)  # pixels to [-1, 1], as in the paper
    assert shape in (VIT_B_32, VIT_B_16, VIT_L_32)
