"""The quickstart on few images and steps: what it writes, that its report shows its numbers and tells the truth."""

from __future__ import annotations

import html
import json
import math
import os
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import memtok
from memtok.cli.options import build_parser, parse
from memtok.quickstart import Listener, QuickstartResult, QuickstartSettings, RichListener, TrainedRun, run
from memtok.quickstart.page import write_report
from memtok.quickstart.views import PARTS, View, draw_view
from memtok.quickstart.words import comparison_words, memory_words, minus, next_commands, verification_words
from memtok.report import percent, size
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
        for name in ("head-only", "head-class-token", "memory-1-cell", "memory-5-cells", "memory-10-cells")
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


def text_of(page: str) -> str:
    """What a reader sees, with plain spaces."""
    body = re.sub(r"<style>.*?</style>|<svg.*?</svg>", " ", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", body))).replace("\u00a0", " ")


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


def test_report_shows_the_numbers(written: dict[str, object], result: QuickstartResult, page: str) -> None:
    """What the page says is what results.json holds: in the tables every row, whole."""
    text = text_of(page)
    for run_ in result.tasks:
        expected = (
            f"{run_.name} {run_.classes[0]} to {run_.classes[-1]} {run_.train_images} {run_.test_images} "
            f"{percent(run_.test_top1)} {percent(run_.composed_top1 or 0)} {run_.trainable_parameters:,} "
            f"{size(run_.bytes)}"
        )
        assert expected.replace("\u00a0", " ") in text
    for run_ in result.comparison:
        base = "needs a pass of its own" if run_.base_bitwise is None else "bitwise the same"
        shown = f"{percent(run_.test_top1)} {run_.trainable_parameters:,} {size(run_.bytes)} {base}"
        assert f"{run_.label} {shown}".replace("\u00a0", " ") in text
    for image in result.predictions:
        for said, sure in image.answers.values():
            assert f"{said} {percent(sure)}".replace("\u00a0", " ") in text
    for name, found in result.verification["tasks"].items():
        assert f"“{name}”, against itself alone {found['difference']:.1e} ok" in text
    assert comparison_words(result.comparison).replace("\u00a0", " ") in text
    right = sum(
        image.answers["low" if image.truth in "01234" else "high"][0] == image.truth for image in result.predictions
    )
    assert f"right on {right} of 10" in text
    for _, lines in next_commands(Path("out")):
        assert all(line in text for line in lines)
    assert str(written["command"]) in text


def test_report_needs_nothing_else(page: str) -> None:
    outside = re.sub(r'xmlns(:xlink)?="[^"]*"', "", page)
    assert not re.search(r"https?:|<script|<link|@import|<iframe", outside)
    assert all(address.startswith("data:image/png;base64,") for address in re.findall(r'src="([^"]*)', page))
    assert all(
        address.startswith("#")
        for address in re.findall(r'href="([^"]*)|url\(([^)]*)\)', outside)
        for address in [max(address)]
    )
    charts = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(charts) == 5
    identities = [
        element.attrib["id"]
        for chart in charts
        for element in ElementTree.fromstring(chart).iter()
        if "id" in element.attrib
    ]
    assert len(identities) == len(set(identities))
    assert page.count("<img") == 10 + 6 * 7


def test_listener_hears_everything_in_order(result: QuickstartResult, heard: Heard) -> None:
    assert heard.steps == heard.ahead == 7 * SETTINGS.steps
    assert [word.split(":")[0].split(" ")[0] for word in heard.words] == [
        *("training", "training", "putting", "measuring", "verifying"),
        *["comparing"] * 5,
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
    lines = printed.out.replace("\u00a0", " ").splitlines()
    for run_ in result.comparison:
        (line,) = [line for line in lines if line.startswith(run_.label + "  ")]
        shown = [percent(run_.test_top1), f"{run_.trainable_parameters:,}", size(run_.bytes)]
        assert [word.replace("\u00a0", " ") in line for word in shown] == [True] * 3
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
    with pytest.raises(memtok.MemtokError, match=r"^expected a folder that can be written [^\n]*; choose another$"):
        run(tmp_path / name, progress=heard, settings=SETTINGS)
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
    text = text_of((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "NOT verified" in text
    assert "“high”, against itself alone nan FAILED" in text
    assert "FAILED: changed" in text
    assert "features of the backbone different FAILED answer of the backbone different FAILED" in text
    assert "before and after changed FAILED" in text
    assert not re.search(r"bitwise the same|bit for bit ok|answers bit for bit as|each as it does alone", text)


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
        f"Highest here: a with {percent(330 / 359)} of 359 test images. "
        f"These images cannot tell it apart from b ({percent(328 / 359)}). "
        "One run each: another seed may order them differently."
    )
    said = comparison_words([scored("a", 200), scored("b", 330), scored("c", 328)])
    assert said.startswith(f"Highest here: b with {percent(330 / 359)}")
    assert f"cannot tell it apart from c ({percent(328 / 359)})." in said
    assert f"Behind it by more than chance: a ({percent(200 / 359)})." in said


def test_cells_that_are_behind_are_not_said_to_make_no_difference() -> None:
    """As it once was: 10 cells behind the best by more than chance, and no difference between 1 and 10 cells."""
    runs = [scored("head", 326), *(scored(f"{n} cells", right, n) for n, right in ((1, 320), (5, 334), (10, 316)))]
    said = comparison_words(runs)
    behind = said[said.index("Behind") :].split(". ")[0]
    assert "10 cells" in behind
    assert "10 cells minus 5 cells" in said
    assert "no difference" not in said


def test_words_on_memory() -> None:
    alike = [scored("head", 300), scored("1", 300, 1), scored("5", 301, 5), scored("10", 300, 10)]
    head, cells = memory_words(alike)
    assert head.startswith("“5” minus “head”: +0.3 points")
    assert "do not show that memory helped" in head
    assert cells == "Between 1, 5 and 10 cells these images show no difference."
    better = [scored("head", 280), scored("1", 300, 1), scored("10", 340, 10)]
    head, cells = memory_words(better)
    assert head.endswith("more than chance.")
    assert cells.startswith("The number of cells made a difference: 10 cells minus 1 cell: +11.1 points")
    assert memory_words(better[:1]) == []
    assert len(memory_words(better[:2])) == 1
