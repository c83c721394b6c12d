"""The quickstart on few images and steps: what it writes, that its report shows its numbers and tells the truth."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import memtok
from memtok.cli.options import build_parser, parse
from memtok.intervals import wilson
from memtok.plots import LIGHT, new_figure
from memtok.quickstart import Listener, QuickstartResult, QuickstartSettings, RichListener, TrainedRun, charts, run
from memtok.quickstart.page import write_report
from memtok.quickstart.views import PARTS, View, draw_view
from memtok.quickstart.words import comparison_words, memory_words, minus, next_commands, verification_words
from memtok.rounding import TaskDifferences
from memtok.verification import VerifyReport

SETTINGS = QuickstartSettings(
    steps=4, batch_size=16, validations=2, train_images=60, validation_images=20, test_images=50, verified_images=8
)
TASKS = {"low": tuple("01234"), "high": tuple("56789")}
FILES = {
    "low.safetensors",
    "high.safetensors",
    "both.safetensors",
    "results.json",
    "report.html",
    *(f"images/{digit}.png" for digit in range(10)),
    *(
        f"comparison/{name}.safetensors"
        for name in (
            *("head-only", "head-class-token", "memory-1-cell", "memory-5-cells", "memory-10-cells"),
            "readout-of-all-levels",
        )
    ),
}


class Heard(Listener):
    """Writes down what it hears."""

    def __init__(self) -> None:
        self.steps = self.ahead = self.closed = 0
        self.words: list[str] = []
        self.results: list[object] = []

    def start(self, backbone: memtok.Backbone, data: object, steps: int) -> None:
        self.ahead = steps

    def doing(self, what: str) -> None:
        self.words.append(what)

    def advance(self, steps: int = 1) -> None:
        self.steps += steps

    def measured(self, run: TrainedRun) -> None:
        self.results.append(run)

    def verified(self, report: VerifyReport) -> None:
        self.results.append(report)

    def finish(self, result: QuickstartResult) -> None:
        self.results.append(result)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture(scope="module")
def heard() -> Heard:
    return Heard()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which nothing but `out` may appear, and which is the current one while it runs."""
    return tmp_path_factory.mktemp("quickstart")


@pytest.fixture(scope="module")
def result(folder: Path, heard: Heard) -> QuickstartResult:
    """One quickstart, into a folder in which somebody's own file lies."""
    out = folder / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine", encoding="utf-8")
    before = os.getcwd()
    os.chdir(folder)
    try:
        return run(Path("out"), seed=3, progress=heard, settings=SETTINGS)
    finally:
        os.chdir(before)


@pytest.fixture(scope="module")
def written(result: QuickstartResult, folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "out" / "results.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def page(result: QuickstartResult, folder: Path) -> str:
    return (folder / "out" / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def model(result: QuickstartResult, folder: Path) -> memtok.MemoryViT:
    """The composed model, from its file."""
    backbone = memtok.load_backbone("small")
    return memtok.MemoryViT(backbone, memtok.load_tasks(folder / "out" / "both.safetensors", backbone))


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


class Reader(HTMLParser):
    """What a reader of the page gets: its text, its tables as rows of cells, and its pictures."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.images: list[dict[str, str | None]] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.inside: list[str] = []
        self.feed(page)
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("img", "meta", "source"):
            self.inside.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))
        self.addresses += [value or "" for name, value in attrs if name in ("src", "srcset", "href")]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.inside.pop() == tag

    def handle_data(self, data: str) -> None:
        data = data.replace("\N{NO-BREAK SPACE}", " ")
        if self.inside[-1:] != ["style"]:
            self.words.append(data)
        if self.inside[-1:] in (["td"], ["th"]):
            self.tables[-1][-1][-1] += data


def test_files(result: QuickstartResult, folder: Path) -> None:
    assert files_in(folder) == {f"out/{name}" for name in FILES | {"notes.txt", ".lock"}}
    assert (folder / "out" / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_results_are_the_result(result: QuickstartResult, written: dict[str, object]) -> None:
    assert written == json.loads(json.dumps(result.to_json()))
    assert written["ok"] is result.ok is True
    assert written["seed"] == 3
    assert written["command"] == "memtok quickstart --out out --seed 3"
    assert {"python", "memtok", "torch", "timm"} <= result.versions.keys()
    assert not {"out"} & written.keys()
    assert str(Path.cwd()) not in json.dumps(written)


@pytest.mark.twice
def test_numbers_can_be_measured_again(result: QuickstartResult, folder: Path, model: memtok.MemoryViT) -> None:
    """Every accuracy, parameter count and size, from the files."""
    data = memtok.open_data("digits")
    test = replace(data, test=data.test.take(SETTINGS.test_images or 0))
    assert [run.name for run in result.tasks] == list(model.names) == list(TASKS)
    for run_ in (*result.tasks, *result.comparison):
        path = folder / "out" / run_.file
        task = memtok.load_task(path, model.backbone)
        source = test if task.classes == test.classes else test.only(task.classes)
        score = memtok.evaluate(memtok.MemoryViT(model.backbone, [task]), source).tasks[task.name]
        assert (run_.test_top1, run_.test_images) == (score.top1, score.images)
        if run_ in result.comparison:
            assert run_.right is not None
            assert (run_.right.count("1"), len(run_.right)) == (round(score.top1 * score.images), score.images)
        assert run_.trainable_parameters == sum(parameter.numel() for parameter in task.parameters())
        assert run_.bytes == path.stat().st_size
        assert (run_.regime, run_.cells, run_.classes) == (task.regime, task.cells, task.classes)
        assert run_.validation_top1 == max(value for _, value in run_.validation)
        assert [step for step, _ in run_.validation] == [2, 4]
        assert task.record["seed"] == 3
        assert task.record["hyperparameters"]["steps"] == SETTINGS.steps
    composed = memtok.evaluate(model, {name: test.only(classes) for name, classes in TASKS.items()})
    assert [run.composed_top1 for run in result.tasks] == [composed.tasks[name].top1 for name in TASKS]
    assert {run.label: run.base_bitwise for run in result.comparison} == {
        "head only": True,
        "head + class token": None,
        "memory, 1 cell": True,
        "memory, 5 cells": True,
        "memory, 10 cells": True,
        "readout of all levels": True,
    }


def test_tasks_saw_their_own_digits_only(result: QuickstartResult, folder: Path, model: memtok.MemoryViT) -> None:
    for task in model.tasks:
        assert task.classes == TASKS[task.name]
        alone = memtok.load_task(folder / "out" / f"{task.name}.safetensors", model.backbone)
        assert alone.fingerprint == task.fingerprint
        assert task.record["data"]["split"]["counts"]["train"] == 30


def test_predictions_are_those_of_the_files(result: QuickstartResult, folder: Path, model: memtok.MemoryViT) -> None:
    again = memtok.predict(model, [folder / "out" / "images"], top=1, base=True)
    found = {(Path(row.path).stem, row.task): row.ranking[0] for row in again.rows}
    assert [image.truth for image in result.predictions] == list("0123456789")
    for image in result.predictions:
        assert image.answers.keys() == {"low", "high", "base"}
        for name, (said, sure) in image.answers.items():
            assert found[image.truth, name][0] == said
            assert found[image.truth, name][1] == pytest.approx(sure, abs=1e-5)


def test_attention_adds_up(result: QuickstartResult, model: memtok.MemoryViT) -> None:
    for parts in result.attention.values():
        assert tuple(parts) == PARTS
        for layer in zip(*parts.values(), strict=True):
            assert sum(layer) == pytest.approx(1, abs=1e-5)
            assert min(layer) > 0
        assert len(parts["own memory"]) == model.backbone.depth


def test_report_shows_the_numbers(written: dict[str, Any], page: str) -> None:
    """What the page says is what results.json holds."""
    tasks, checks, comparison, maps, files = Reader(page).tables
    for row, one in zip(tasks[1:], written["tasks"], strict=True):
        assert (row[0], row[6].replace(",", "")) == (one["name"], str(one["trainable_parameters"]))
        assert row[4:6] == [f"{100 * one[key]:.1f} %" for key in ("test_top1", "composed_top1")]
    for row, one in zip(comparison[1:], written["comparison"], strict=True):
        assert row[:2] == [one["label"], f"{100 * one['test_top1']:.1f} %"]
        assert row[2].replace(",", "") == str(one["trainable_parameters"])
    assert [row[2] for row in checks[1:]] == ["ok"] * 5
    assert [float(row[1]) for row in checks[3:5]] == pytest.approx(
        [found["difference"] for found in written["verification"]["tasks"].values()], rel=0.1
    )
    assert {row[0] for row in files[1:]} == {name for name in FILES if name.endswith(".safetensors")}
    assert [len(row) for row in maps] == [1 + written["backbone"]["layers"]] * 7
    text = Reader(page).text
    for image in written["predictions"]:
        for said, sure in image["answers"].values():
            assert f"{said} {100 * sure:.1f} %" in text
    for _, lines in next_commands(Path("out")):
        assert all(line in text for line in lines)
    assert written["command"] in text


def test_report_needs_nothing_else_and_its_pictures_are_pictures(page: str) -> None:
    read = Reader(page)
    assert not {"script", "link", "iframe"} & set(read.tags)
    assert not re.search(r"https?:|@import", page)
    sizes = []
    for address in read.addresses:
        kind, _, data = address.partition(",")
        assert kind == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            picture.load()
            sizes.append(picture.size)
    assert sum(width > 1000 for width, _ in sizes) == 2 * 5  # the charts, in light and in dark
    assert sizes.count((8, 8)) == 10 + 6  # the digits
    assert len(read.images) == 5 + 10 + 6 * 7
    assert read.tags.count("caption") == len(read.tables)


def test_report_can_be_read_without_seeing_it(page: str, written: dict[str, Any]) -> None:
    """Every picture says in words what it shows, a chart with its numbers."""
    texts = [image["alt"] or "" for image in Reader(page).images]
    assert all(texts)
    for one in written["comparison"]:
        assert any(f"{one['label']}: {100 * one['test_top1']:.1f}" in text for text in texts)


def test_charts_show_the_numbers(result: QuickstartResult, model: memtok.MemoryViT) -> None:
    runs, view = result.comparison, view_of(model)
    with new_figure(7, 3) as figure:
        charts.curves(figure, LIGHT, runs)
        left, right = figure.axes
        assert [tuple(line.get_ydata()) for line in left.lines] == [tuple(y for _, y in one.loss) for one in runs]
        assert [tuple(line.get_ydata() / 100) for line in right.lines] == [
            pytest.approx([y for _, y in one.validation]) for one in runs
        ]
        assert len({str(line.get_linestyle()) + str(line.get_color()) for line in left.lines}) == len(runs)
    with new_figure(7, 3) as figure:
        charts.bars(figure, LIGHT, runs)
        axes = figure.axes[0]
        assert [bar.get_width() for bar in axes.patches] == pytest.approx([100 * one.test_top1 for one in runs])
        whiskers = [segment[:, 0] for segment in axes.collections[0].get_segments()]
        assert np.allclose(whiskers, [100 * np.array(wilson(one.test_top1, one.test_images)) for one in runs])
    with new_figure(7, 3) as figure:
        charts.mask(figure, LIGHT, view.mask, view.rows, view.columns)
        cells = figure.axes[0].collections[0].get_array().reshape(view.mask.shape)
        assert np.array_equal(cells > 0, view.mask)
        assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == [name for name, _ in view.columns]
    with new_figure(7, 3) as figure:
        charts.layer_shares(figure, LIGHT, result.attention)
        for axes, parts in zip(figure.axes, result.attention.values(), strict=True):
            heights = [[bar.get_height() / 100 for bar in bars] for bars in axes.containers]
            assert np.allclose(heights, list(parts.values()))
            assert np.allclose([bar.get_y() + bar.get_height() for bar in axes.containers[-1]], 100, atol=1e-3)


def test_a_heat_map_is_darkest_where_the_heat_is() -> None:
    heat = np.zeros((4, 4), dtype=np.float32)
    heat[1, 2] = 0.01  # what counts is which place is the strongest, not how strong it is
    heat[3, 3] = 0.004
    light = charts.heat_map(heat).astype(int).sum(axis=2)
    assert light.shape == (4, 4)
    assert light[1, 2] < light[3, 3] < light[0, 0] == light.max()
    assert (charts.heat_map(np.zeros_like(heat)) == charts.heat_map(heat)[0, 0]).all()


def test_names_are_escaped(result: QuickstartResult, model: memtok.MemoryViT, tmp_path: Path) -> None:
    nasty = "<b>&\"'</b>"
    odd = replace(result, command=nasty, comparison=tuple(replace(run, label=nasty) for run in result.comparison))
    write_report(tmp_path / "report.html", odd, view_of(model))
    read = Reader((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "b" not in read.tags
    assert nasty in read.text
    assert [row[0] for row in read.tables[2][1:]] == [nasty] * 6


def test_listener_hears_everything_in_order(result: QuickstartResult, heard: Heard) -> None:
    assert heard.steps == heard.ahead == 8 * SETTINGS.steps
    assert [word.split(":")[0].split(" ")[0] for word in heard.words] == [
        *("training", "training", "putting", "measuring", "verifying"),
        *["comparing"] * 6,
        "predicting",
    ]
    assert heard.results[-1] is result
    assert [entry for entry in heard.results if isinstance(entry, TrainedRun)] == [*result.tasks, *result.comparison]
    assert sum(isinstance(entry, VerifyReport) for entry in heard.results) == 1
    assert heard.closed == 1


def test_printed_without_a_terminal(result: QuickstartResult, capsys: pytest.CaptureFixture[str]) -> None:
    listener = RichListener()
    listener.start(memtok.load_backbone("small"), memtok.open_data("digits"), 10)
    listener.doing("training")
    listener.advance()
    for run_ in result.tasks:
        listener.measured(run_)
    listener.finish(result)
    listener.close()
    printed = capsys.readouterr()
    assert printed.err == "training ...\n"
    lines = printed.out.splitlines()
    for run_ in result.comparison:
        (line,) = [line for line in lines if line.startswith(run_.label + "  ")]
        assert line.removeprefix(run_.label).split()[:3] == [
            *f"{100 * run_.test_top1:.1f} %".split(),
            f"{run_.trainable_parameters:,}",
        ]
    assert max(map(len, (line for line in lines if "bitwise the same" in line))) <= 80  # fits a narrow terminal
    assert f"Open {Path('out/report.html')} for the pictures" in printed.out
    for _, commands in next_commands(result.out):
        assert all(f"  {command}" in lines for command in commands)


def test_commands_are_understood(tmp_path: Path) -> None:
    """Everything that it tells people to type is a command with options that it has, also for an odd folder."""
    import importlib
    import shlex

    for out in (Path("quickstart"), tmp_path / "a folder's name"):
        for _, lines in next_commands(out):
            for line in lines:
                program, command, *words = shlex.split(line)
                assert program == "memtok"
                module = importlib.import_module(f"memtok.cli.{command}")
                parser = build_parser(command, "text", module.USAGE, module.EXAMPLES)
                module.configure(parser)
                options = parse(parser, words)
                assert options is not None
                if command in ("inspect", "verify", "predict", "concat", "evaluate"):
                    assert options.files


@pytest.mark.twice
@pytest.mark.slow
def test_again_into_the_same_folder(result: QuickstartResult, folder: Path) -> None:
    """The same seed gives the same numbers; its own files are replaced, others stay; nobody's state is touched."""
    out = folder / "out"
    (out / "report.html").write_text("old", encoding="utf-8")
    random, threads = torch.get_rng_state(), torch.get_num_threads()
    again = run(out, seed=3, settings=SETTINGS)
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.get_num_threads() == threads
    assert files_in(folder) == {f"out/{name}" for name in FILES | {"notes.txt", ".lock"}}
    assert (out / "notes.txt").read_text(encoding="utf-8") == "mine"
    assert "<h1>" in (out / "report.html").read_text(encoding="utf-8")

    def without_times(one: QuickstartResult) -> QuickstartResult:
        untimed: dict[str, Any] = {"seconds": 0.0, "out": out, "command": ""}
        tasks = tuple(replace(run, seconds=0.0, bytes=0) for run in one.tasks)  # the record in a file has times as well
        return replace(
            one,
            tasks=tasks,
            comparison=tuple(replace(run, seconds=0.0, bytes=0) for run in one.comparison),
            composed={**one.composed, "bytes": 0},
            **untimed,
        )

    assert without_times(again) == without_times(result)


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_folder_that_cannot_be_made(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    heard = Heard()
    with pytest.raises(memtok.MemtokError) as error:
        run(tmp_path / name, progress=heard, settings=SETTINGS)
    assert error.value.argument == "out"
    assert (heard.ahead, heard.words, heard.results) == (0, [], [])  # before any work
    assert files_in(tmp_path) == {"file"}


def test_failed_proof_is_said(result: QuickstartResult, model: memtok.MemoryViT, tmp_path: Path) -> None:
    """A report of a model that changed something says so, and nowhere the contrary."""
    proof = VerifyReport(
        features_bitwise=False,
        base_bitwise=False,
        base_difference=0.5,
        differences={
            "low": TaskDifferences(composed=1e-6, alone=1e-6, reference=1e-6, double=1e-15),
            "high": TaskDifferences(composed=math.nan, alone=1e-6, reference=1e-6, double=1e-15),
        },
        unchanged=False,
        images=8,
    )
    changed = tuple(replace(run, base_bitwise=run.base_bitwise and False) for run in result.comparison)
    failed = replace(result, verification=proof.to_json(), comparison=changed)
    assert not failed.ok
    assert not replace(result, comparison=changed).ok
    assert verification_words(failed.verification).startswith("NOT verified: the base output differ")
    write_report(tmp_path / "report.html", failed, view_of(model))
    read = Reader((tmp_path / "report.html").read_text(encoding="utf-8"))
    _, checks, comparison, *_ = read.tables
    assert "NOT verified" in read.text
    assert [row[2] for row in checks[1:]] == ["FAILED", "FAILED", "ok", "FAILED", "FAILED"]
    assert checks[4][1] == "nan"
    assert [row[-1] for row in comparison[1:]].count("FAILED: changed") == 5
    assert not re.search(r"bitwise the same|answers bit for bit as|each as it does alone", read.text)


def view_of(model: memtok.MemoryViT) -> View:
    images = memtok.open_data("digits").test.take(10)
    return draw_view(model, images.select(images.labels.argsort()), TASKS)


def test_view(model: memtok.MemoryViT) -> None:
    view = view_of(model)
    trunk = 1 + 4 * 4
    cells = [task.cells for task in model.tasks]
    assert np.array_equal(view.mask, memtok.attention_mask(trunk, model.tasks).numpy())
    assert [count for _, count in view.rows] == [trunk, 1, 1]
    assert [count for _, count in view.columns] == [trunk, 1, 1, *cells]
    assert {digit: task for digit, (task, _) in view.maps.items()} == {
        digit: name for name, classes in TASKS.items() for digit in classes
    }
    # The patches lie row by row: the map of one image against the attention itself.
    image = memtok.evaluation_transform(model.preprocessing)(view.images["7"])[None]
    with torch.no_grad():
        seen = model(image, attention=True).attention["high"].image.mean(dim=(1, 2, 3))  # (L, N)
    assert np.allclose(view.maps["7"][1].reshape(len(seen), -1), seen[:, 1:].numpy(), atol=1e-6)


def scored(label: str, right: int, cells: int = 0, *, start: int = 0, known: bool = True) -> TrainedRun:
    """A run of which only the answers matter: `right` of 359 images, from number `start` on."""
    answers = ["1" if start <= number < start + right else "0" for number in range(359)]
    return TrainedRun(
        label=label,
        name="digits",
        regime="memory" if cells else "head",
        cells=cells,
        classes=("0", "1"),
        file="x",
        bytes=1,
        trainable_parameters=1,
        total_parameters=2,
        train_images=1,
        validation_images=1,
        validation_top1=0.5,
        test_images=359,
        test_top1=right / 359,
        composed_top1=None,
        base_bitwise=True,
        loss=(),
        validation=(),
        seconds=0.0,
        right="".join(answers) if known else None,
    )


def test_runs_are_compared_image_by_image() -> None:
    assert not minus(scored("a", 330), scored("b", 320)).tied  # the same images and ten more
    assert minus(scored("a", 330), scored("b", 320, start=30)).tied  # ten more of many that differ
    assert minus(scored("a", 330), scored("b", 320, known=False)).tied


def test_words_follow_the_numbers() -> None:
    few = [scored("a", 330), scored("b", 328)]
    said = comparison_words(few)
    assert said == (
        "Highest here: a with 91.9 % of 359 test images. "
        "No significant difference from b (91.4 %). "
        "One run each: another seed may order them differently."
    )
    said = comparison_words([scored("a", 200), scored("b", 330), scored("c", 328)])
    assert said.startswith("Highest here: b with 91.9 %")
    assert "No significant difference from c (91.4 %)." in said
    assert "Significantly lower: a (55.7 %)." in said


def test_cells_that_are_behind_are_not_said_to_make_no_difference() -> None:
    """As it once was: 10 cells significantly below the best, and no difference between 1 and 10 cells."""
    runs = [scored("head", 326), *(scored(f"{n} cells", right, n) for n, right in ((1, 320), (5, 334), (10, 316)))]
    said = comparison_words(runs)
    behind = said[said.index("Significantly lower") :].split(". ")[0]
    assert "10 cells" in behind
    assert "10 cells minus 5 cells" in said
    assert "No significant difference between" not in said


def test_words_on_memory() -> None:
    alike = [scored("head", 300), scored("1", 300, 1), scored("5", 301, 5), scored("10", 300, 10)]
    head, cells = memory_words(alike)
    assert head.startswith("“5” minus “head”: +0.3 points")
    assert head.endswith("which is not significant.")
    assert cells == "No significant difference between 1, 5 and 10 cells."
    better = [scored("head", 280), scored("1", 300, 1), scored("10", 340, 10)]
    head, cells = memory_words(better)
    assert head.endswith("which is significant.")
    assert cells.startswith("Significant differences between numbers of cells: 10 cells minus 1 cell: +11.1 points")
    assert memory_words(better[:1]) == []
    assert len(memory_words(better[:2])) == 1
