"""The ideas of `python -m memtok_experiments.ideas`: what they read, and that they are what they say."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

import memtok
from memtok.parts.side import Side as SidePart
from memtok_experiments.ideas.command import main
from memtok_experiments.ideas.forms import FORMS, Form, Given, Queries, Side, statistics
from memtok_experiments.ideas.tokens import VIEWS, Tokens, read_tokens, viewed


@pytest.fixture(scope="module")
def backbone() -> memtok.Backbone:
    return memtok.load_backbone("small")


@pytest.fixture(scope="module")
def tokens(backbone: memtok.Backbone) -> Tokens:
    return read_tokens(backbone, memtok.open_data("digits").test.take(20, seed=0))


def given(backbone: memtok.Backbone, tokens: Tokens) -> Given:
    return Given(backbone, classes=10, tokens=tokens.values, seed=3)


def test_the_tokens_are_those_of_the_trunk(backbone: memtok.Backbone, tokens: Tokens) -> None:
    images = memtok.open_data("digits").test.take(20, seed=0)
    batch = memtok.MemoryViT(backbone).prepare([images[index][0] for index in range(len(images))])
    features, _ = backbone(batch)
    assert tokens.values.shape == (20, backbone.depth + 1, backbone.tokens, backbone.dim)
    found = backbone.final_norm(tokens.values[:, -1, 0].float())
    torch.testing.assert_close(found, features, atol=2e-2, rtol=2e-2)
    read = backbone.trace(batch, reads=memtok.levels.Reads(backbone.depth + 1, frozenset(["deviation"]))).statistics
    torch.testing.assert_close(
        statistics(backbone, tokens.values.float())["deviation"], read["deviation"], atol=2e-2, rtol=2e-2
    )


def test_class_tokens_and_the_side_stream_are_those_of_memtok(backbone: memtok.Backbone, tokens: Tokens) -> None:
    values, kind = tokens.values.float(), given(backbone, tokens)
    classes = [str(index) for index in range(10)]
    form = Queries(kind, 2, carried=True)
    task = memtok.Task.create(backbone, name="t", classes=classes, memory=0, queries=2, seed=0)
    with torch.no_grad():
        token = backbone.class_token
        assert token is not None
        task.class_tokens.copy_(form.start[0] - backbone.enter_class_tokens(token) + token)
        task.head.weight.copy_(form.head.weight)
        images = torch.randn(2, 3, *backbone.preprocessing.image_size)
        expected = memtok.reference_outputs(backbone, [task], images)["t"]
        torch.testing.assert_close(form.logits(levels_of(backbone, images)), expected, atol=1e-4, rtol=1e-4)

    side = Side(kind)
    tensors = {f"side.{name}": value[:, 0] for name, value in side.values.items()}
    tensors["side.weight"] = side.head.weight.reshape(10, 17, 16)
    expected = SidePart().together([tensors]).logits(statistics(backbone, values))[0]
    torch.testing.assert_close(side.logits(values), expected)


def levels_of(backbone: memtok.Backbone, images: torch.Tensor) -> torch.Tensor:
    """The tokens of all levels in full precision."""
    found = [backbone.enter(images)]
    for block in backbone.vit.blocks:
        found.append(block(found[-1]))
    return torch.stack(found, dim=1)


@pytest.mark.parametrize("name", list(FORMS))
def test_every_form_learns_and_leaves_the_trunk_alone(backbone: memtok.Backbone, tokens: Tokens, name: str) -> None:
    form = FORMS[name](given(backbone, tokens))
    assert isinstance(form, Form)
    answers = form.logits(tokens.values[:4].float())
    assert answers.shape == (4, 10)
    torch.nn.functional.cross_entropy(answers, tokens.labels[:4]).backward()
    grouped = [parameter for some, _ in form.groups() for parameter in some]
    assert {id(one) for one in grouped} == {id(one) for one in form.parameters()}
    assert any(parameter.grad is not None and bool(parameter.grad.any()) for parameter in grouped)
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_views(tokens: Tokens) -> None:
    pixels = torch.rand(2, 3, 16, 16)
    plain, mirrored, cropped = (viewed(pixels, view) for view in VIEWS)
    assert torch.equal(plain, pixels)
    assert torch.equal(mirrored.flip(-1), pixels)
    assert cropped.shape == pixels.shape
    assert not torch.equal(cropped, pixels)


def test_the_command_writes_a_line_per_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forms = ["readout", "pooling"]
    sizes = [
        "--earlier",
        "digits@20",
        "--steps",
        "3",
        "--rates",
        "0.001",
        "0.01",
        "--seeds",
        "0",
        "1",
        "--test-images",
        "20",
    ]
    main(["--backbone", "small", "--rows", "digits@40", "--forms", *forms, *sizes, "--out", str(tmp_path)])
    with (tmp_path / "ideas.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert {"readout", "pooling", "readout, average of weights", "readout + earlier"} <= {
        line["form"] for line in lines
    }
    assert all(0 <= float(line["top1"]) <= 1 and line["seeds"] == "2" for line in lines)
    assert capsys.readouterr().out.count("\n") == len(lines) + 2  # and that of the earlier task, by seed
