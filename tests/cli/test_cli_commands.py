"""Every command does its job: what it prints, what it writes, its exit code."""

from __future__ import annotations

import copy
import csv
import json
import shlex
import shutil
import types
from pathlib import Path
from typing import Any

import pytest
import torch

import memtok
from memtok.header import read_header
from memtok.training.forms import FORMS, TRIED
from memtok.training.settings import DEFAULTS, settings_of
from tests.cli.conftest import Run

BACKBONE = ("--backbone", "tiny.safetensors")
ANY_LENGTH = (*BACKBONE, "--data", "folder:photos", "--batch-size", "4", "--device", "cpu")
QUICK = (*ANY_LENGTH, "--steps", "2")


def load_json(path: str | Path) -> Any:
    return json.loads(Path(path).read_text())


# train


def test_train_writes_a_task_file(workspace: Path, run: Run) -> None:
    found = run("train", *QUICK, "--memory", "3", "--seed", "7", "--out", "new.safetensors", "--json", "new.json")
    assert found.code == 0, found.err
    (header,) = read_header("new.safetensors")
    assert header["name"] == "new"
    assert header["classes"] == ["class 0", "class 1", "class 2"]
    assert header["record"]["seed"] == 7
    trained = 32 + 2 * 3 * 32 + 3 * 32 + 3
    assert f"training {trained:,} of" in found.err  # at the start
    assert f"{trained:,} of" in found.out
    result = load_json("new.json")
    assert result["trainable_parameters"] == trained
    assert (result["steps"], result["name"], result["file"]) == (2, "new", "new.safetensors")
    assert 0 <= result["best_accuracy"] <= 1
    assert "memtok evaluate new.safetensors --backbone tiny.safetensors --data new=folder:photos" in found.out


def test_train_ends_with_a_head_alone(workspace: Path, run: Run) -> None:
    words = (*QUICK, "--augment", "none", "--out", "new.safetensors", "--json", "new.json", "--overwrite")
    assert "head alone" not in run("train", *words).out  # two steps: it would cost as much as the run
    assert load_json("new.json")["head_alone"] is None
    found = run("train", *words, "--compare-head")
    assert found.code == 0, found.err
    (line,) = [line for line in found.out.splitlines() if line.startswith("head alone")]
    told = load_json("new.json")["head_alone"]
    assert f"{100 * told['top1']:.2f} % of the same {told['images']} validation images" in line
    assert told == load_json("new.run/record.json")["head_alone"]
    assert told["gain"]["low"] <= told["gain"]["value"] <= told["gain"]["high"]
    assert "head alone" not in run("train", *words, "--no-compare-head", "--steps", "100").out


def test_train_chooses_a_form(workspace: Path, run: Run) -> None:
    words = (*QUICK, "--regime", "auto", "--augment", "none", "--out", "new.safetensors", "--json", "new.json")
    found = run("train", *words)
    assert found.code == 0, found.err
    chosen = load_json("new.json")["form"]
    assert {score["name"] for score in chosen["scores"]} == {"readout", "side", "readout+side"}
    assert chosen["steps"] == 2
    sizes = memtok.load_task("new.safetensors", memtok.load_backbone("tiny.safetensors")).sizes
    assert [part for part in ("readout", "side") if sizes[part]] == chosen["name"].split("+")
    for more in (("--memory", "3"), ("--extends", "pets.safetensors"), ("--solver", "ridge")):
        refused = run("train", *words, *more)
        assert refused.code == 2
        assert more[0] in refused.error


def test_train_chooses_among_named_forms(workspace: Path, run: Run) -> None:
    words = (*QUICK, "--augment", "none", "--out", "new.safetensors", "--json", "new.json", "--forms", "memory", "side")
    found = run("train", *words)
    assert found.code == 0, found.err
    assert {score["name"] for score in load_json("new.json")["form"]["scores"]} == {"memory", "side"}
    assert run("train", *words, "--resume").code == 0
    for more in (("--forms", "magic"), ("--forms", "ridge"), ("--regime", "memory")):
        refused = run("train", *words, *more)
        assert refused.code == 2
        assert "--forms" in refused.error


@pytest.mark.slow
def test_train_may_choose_to_solve(workspace: Path, run: Run) -> None:
    found = run("train", *ANY_LENGTH, "--out", "new.safetensors", "--json", "new.json")
    assert found.code == 0, found.err
    result = load_json("new.json")
    assert {score["name"] for score in result["form"]["scores"]} == set(TRIED) - {"ridge-low-rank"}  # for more classes
    assert (result["steps"] == 1) == (FORMS[result["form"]["name"]].solver == "ridge")


@pytest.mark.parametrize(
    ("words", "regime"),
    [
        ((), None),
        (("--memory", "3"), "memory"),
        (("--extends", "pets.safetensors"), "memory"),
        (("--recipe", "paper"), "memory"),
        (("--compare-head",), "memory"),
        (("--readout", "2", "--regime", "head"), "head"),
    ],
)
def test_a_regime_is_chosen_unless_more_is_said(
    words: tuple[str, ...], regime: str | None, workspace: Path, run: Run
) -> None:
    found = run("train", *QUICK, *words, "--out", "new.safetensors", "--json", "new.json")
    assert found.code == 0, found.err
    result = load_json("new.json")
    assert (result["form"] is None) == (regime is not None)
    assert result["regime"] in ((regime,) if regime else ("readout", "side"))


def test_a_run_goes_on_with_the_form_that_it_began_with(
    workspace: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("train", *QUICK, "--out", "new.safetensors")
    assert run(*words).code == 0
    regime = read_header("new.safetensors")[0]["regime"]
    monkeypatch.delattr("memtok.training.forms.train_together")  # nothing is chosen again
    again = run(*words, "--resume", "--json", "new.json")
    assert again.code == 0, again.err
    assert load_json("new.json")["regime"] == regime
    refused = run(*words)
    assert refused.code == 1
    assert "--resume" in refused.error
    assert run("train", *QUICK, "--regime", "memory", "--out", "more-memory.safetensors").code == 0
    named = run("train", *QUICK, "--out", "more-memory.safetensors", "--resume", "--json", "more.json")
    assert named.code == 0, named.err
    assert load_json("more.json")["regime"] == "memory"


def test_the_commands_that_train_suggests_work(workspace: Path, run: Run) -> None:
    printed = run("train", *QUICK, "--out", "new.safetensors", "--name", "my task").out
    commands = [line.strip() for line in printed.splitlines() if line.startswith("  memtok ")]
    assert [command.split()[1] for command in commands] == ["evaluate", "verify", "predict"]
    for command in commands:
        words = shlex.split(command.replace("PATH", "photos"))[1:]
        assert run(*words).code == 0, command


def test_train_extends(workspace: Path, run: Run) -> None:
    """The files of what is extended in any order; what those extend in turn is not listed again."""
    found = run("train", *QUICK, "--extends", "more.safetensors", "pets.safetensors", "--out", "third.safetensors")
    assert found.code == 0, found.err
    (header,) = read_header("third.safetensors")
    assert [entry["name"] for entry in header["extends"]] == ["more"]
    assert run("verify", "third.safetensors", "pets.safetensors", "more.safetensors", *BACKBONE).code == 0


def test_train_full_gives_a_model_that_the_other_commands_take(workspace: Path, run: Run) -> None:
    assert run("train", *QUICK, "--regime", "full", "--out", "whole.safetensors").code == 0
    measured = run("evaluate", "--backbone", "whole.safetensors", "--data", "folder:photos", "--json", "m.json")
    assert measured.code == 0, measured.err
    assert load_json("m.json")["tasks"] == {}
    assert load_json("m.json")["base"].keys() == {"top1", "top5", "images", "balanced", "recall", "confusion"}
    predicted = run("predict", "--backbone", "whole.safetensors", "--images", "photos/class 0/0.png")
    assert predicted.code == 0, predicted.err
    assert "base  class " in predicted.out
    assert "a whole model" in run("inspect", "whole.safetensors").out


def test_a_damaged_configuration_is_no_obstacle(workspace: Path, run: Run) -> None:
    """What a run goes on from is its state; the form is chosen again, and is the same."""
    words = ("train", *QUICK, "--out", "new.safetensors")
    assert run(*words).code == 0
    before = read_header("new.safetensors")[0]["fingerprint"]
    Path("new.run/config.json").write_text("{", encoding="utf-8")
    again = run(*words, "--resume")
    assert again.code == 0, again.err
    assert read_header("new.safetensors")[0]["fingerprint"] == before


@pytest.mark.parametrize("regime", ["head", "head+class", "memory-shared", "memory-propagated", "memory-additive"])
def test_train_every_regime(regime: str, workspace: Path, run: Run) -> None:
    found = run("train", *QUICK, "--regime", regime, "--out", "new.safetensors")
    assert found.code == 0, found.err
    (header,) = read_header("new.safetensors")
    assert header["regime"] == regime


def test_train_from_a_file_with_overrides(workspace: Path, run: Run) -> None:
    Path("train.yaml").write_text(
        "backbone: tiny.safetensors\ndata: folder:photos\nsteps: 2\nbatch-size: 4\nlearning-rate: 1e-3\nmemory: 2\n"
        "accumulate: null\nregime: null\n"
        "extends: [more.safetensors, pets.safetensors]\n"
    )
    found = run(
        "train", "--config", "train.yaml", "--memory", "4", "--extends", "pets.safetensors", "--out", "n.safetensors"
    )
    assert found.code == 0, found.err
    (header,) = read_header("n.safetensors")
    assert [entry["name"] for entry in header["extends"]] == ["pets"]
    assert header["record"]["hyperparameters"]["learning_rate"] == 1e-3
    assert header["record"]["hyperparameters"]["batch_size"] == 4
    task = memtok.load_task("n.safetensors", *_with_pets())
    assert task.cells == 4


def _with_pets() -> tuple[memtok.Backbone, list[memtok.Task]]:
    backbone = memtok.load_backbone("tiny.safetensors")
    return backbone, memtok.load_tasks("pets.safetensors", backbone)


@pytest.mark.twice
def test_train_resumes_a_finished_run_to_the_same_file(workspace: Path, run: Run) -> None:
    words = ("train", *QUICK, "--out", "new.safetensors")
    assert run(*words).code == 0
    (before,) = read_header("new.safetensors")
    assert run(*words, "--resume").code == 0
    (after,) = read_header("new.safetensors")
    assert after["fingerprint"] == before["fingerprint"]


def test_train_skips_bad_images_and_says_so(workspace: Path, run: Run) -> None:
    Path("photos/class 0/bad.png").write_bytes(b"nothing")
    failed = run("train", *QUICK, "--out", "new.safetensors")
    assert failed.code == 1
    assert "bad.png" in failed.error
    assert not Path("new.safetensors").exists()
    done = run("train", *QUICK, "--on-bad-image", "skip", "--out", "new.safetensors", "--json", "new.json")
    assert done.code == 0
    assert "left out: photos/class 0/bad.png" in done.err
    (suggested,) = [line.strip() for line in done.out.splitlines() if line.startswith("  memtok evaluate ")]
    assert run(*shlex.split(suggested)[1:]).code == 0
    assert load_json("new.json")["skipped_images"] == 1
    assert [Path(one["path"]).name for one in load_json("new.json")["left_out"]] == ["bad.png"]


@pytest.mark.parametrize("command", ["train", "sweep", "reproduce"])
def test_options_and_yaml_keys_are_the_declared_settings(command: str, run: Run) -> None:
    printed = run(command, "--print-config")
    assert printed.code == 0, printed.err
    given = dict(line.split(": ", 1) for line in printed.out.splitlines() if ": " in line)
    help = run(command, "--help").out.replace(",", " ").split()
    assert settings_of(command)
    for name in settings_of(command):
        default = DEFAULTS[name] if (command, name) != ("reproduce", "recipe") else None  # there it is the paper's
        assert given[name] == ("null" if default is None else str(default).lower())
        assert f"--{name.replace('_', '-')}" in help


def test_train_keeps_traces(workspace: Path, run: Run) -> None:
    words = (
        "train", *BACKBONE, "--data", "folder:photos", "--steps", "6", "--batch-size", "4", "--device", "cpu",
        "--keep-traces", "disk", "--trace-dir", "traces", "--trace-limit", "0.1", "--views", "2",
        "--augment", "crop", "--json", "new.json",
    )  # fmt: skip
    first = run(*words, "--out", "one.safetensors")
    assert first.code == 0, first.err
    assert "keeping traces (traces): " in first.err.replace("\n", " ")
    traces = load_json("new.json")["record"]["traces"]
    assert (traces["kept"], traces["views"], traces["reused"]) == ("disk", 2, 0)
    assert traces["records"] > 0
    second = run(*words, "--out", "two.safetensors")
    assert second.code == 0, second.err
    again = load_json("new.json")["record"]["traces"]
    assert (again["reused"], again["records"]) == (traces["records"], traces["records"])
    assert "were there before" in second.out
    three = run(*words, "--seed", "1", "--out", "three.safetensors")
    assert three.code == 1
    assert "expected traces with seed 1 in traces, found 0" in three.err


# evaluate


def test_evaluate_json_is_the_contract(workspace: Path, run: Run) -> None:
    found = run(
        "evaluate", "more.safetensors", "pets.safetensors", "head.safetensors", *BACKBONE,
        "--data", "pets=folder:photos", "more=folder:photos", "--data", "head=folder:photos", "--part", "train",
        "--json", "out.json", "--csv", "out.csv",
    )  # fmt: skip
    assert found.code == 0, found.err
    result = load_json("out.json")
    assert set(result) == {"tasks", "base", "alone", "skipped_images", "left_out", "splits"}
    assert {name: (split["spec"], split["part"]) for name, split in result["splits"].items()} == dict.fromkeys(
        ("pets", "more", "head"), ("folder:photos", "train")
    )
    assert all(split["digest"].startswith("sha256:") for split in result["splits"].values())
    assert result["base"] is None
    assert list(result["tasks"]) == ["pets", "more", "head"]
    for name, row in result["tasks"].items():
        assert set(row) == {"top1", "top5", "images", "balanced", "recall", "confusion"}
        assert 0 <= row["top1"] <= row["top5"] <= 1
        assert row["images"] == sum(map(sum, row["confusion"])) == 9
        assert row["top1"] == pytest.approx(row["balanced"]) == pytest.approx(sum(row["recall"].values()) / 3)
        alone = result["alone"][name]
        assert alone == {key: row[key] for key in ("top1", "top5", "images", "balanced")}
        assert f"{100 * row['top1']:.2f} %" in found.out
    with Path("out.csv").open(newline="") as stream:
        assert len(list(csv.DictReader(stream))) == 9


def test_evaluate_one_task_without_its_name(workspace: Path, run: Run) -> None:
    found = run(
        "evaluate", "pets.safetensors", *BACKBONE, "--data", "folder:photos", "--composed-only", "--json", "o.json"
    )
    assert found.code == 0, found.err
    assert load_json("o.json")["alone"] == {}
    assert load_json("o.json")["tasks"].keys() == {"pets"}


def test_evaluate_base(workspace: Path, run: Run) -> None:
    backbone = memtok.load_backbone("tiny.safetensors")
    from memtok.checkpoint import save_checkpoint
    from tests.tiny import tiny_vit

    classes = ["class 2", "class 0", "class 1"]
    save_checkpoint(tiny_vit(num_classes=3), backbone.preprocessing, Path("named.safetensors"), classes=classes)
    found = run("evaluate", "--backbone", "named.safetensors", "--data", "base=folder:photos", "--json", "o.json")
    assert found.code == 0, found.err
    assert load_json("o.json")["base"]["images"] == 3
    assert found.out.splitlines()[1].startswith("base")


def test_evaluate_says_which_task_is_not_measured(workspace: Path, run: Run) -> None:
    found = run("evaluate", "pets.safetensors", "head.safetensors", *BACKBONE, "--data", "pets=folder:photos")
    assert found.code == 0
    said = "memtok: note: task 'head' is in the model but has no --data, so it is not measured"
    assert found.err.splitlines()[0] == said


def test_evaluate_names_the_part_that_it_measured(workspace: Path, run: Run) -> None:
    """A folder without test/ has validation images only, and they chose the best state; --split 80-20 gives others."""
    command = ("evaluate", "new.safetensors", *BACKBONE, "--data", "folder:photos", "--json", "o.json")
    trained = run("train", *QUICK, "--out", "new.safetensors")
    assert trained.code == 0, trained.err
    assert "--split 80-20" in trained.out
    found = run(*command, "--csv", "o.csv")
    assert load_json("o.json")["splits"]["new"]["part"] == "validation"
    assert load_json("o.json")["splits"]["new"]["counts"] == {"train": 9, "validation": 3, "test": 0}
    with Path("o.csv").open(newline="") as stream:
        assert {row["part"] for row in csv.DictReader(stream)} == {"validation"}
    assert "test part of" not in found.out
    assert "--split 80-20" in found.err
    refused = run(*command, "--part", "test")
    assert (refused.code, refused.out) == (1, "")
    assert "expected a test part in folder:photos, found none" in refused.error
    assert "--split 80-20" in refused.error

    trained = run("train", *QUICK, "--split", "80-20", "--out", "new.safetensors", "--overwrite")
    assert trained.code == 0, trained.err
    found = run(*command)
    split = load_json("o.json")["splits"]["new"]
    assert (split["part"], split["kind"]) == ("test", "80-20")
    assert split["counts"] == {"train": 6, "validation": 3, "test": 3}
    assert "validation" not in found.out + found.err
    (header,) = read_header("new.safetensors")
    assert header["record"]["data"]["split"]["digest"] == split["digest"]


def test_evaluate_writes_confusion_matrices(workspace: Path, run: Run) -> None:
    command = ("evaluate", "pets.safetensors", *BACKBONE, "--data", "folder:photos")
    found = run(*command, "--confusion", "matrices", "--json", "o.json")
    assert found.code == 0, found.err
    assert sorted(path.name for path in Path("matrices").iterdir()) == ["pets.csv", "pets.json", "pets.png"]
    assert load_json("matrices/pets.json")["confusion"] == load_json("o.json")["tasks"]["pets"]["confusion"]
    among = run(*command, "--confusion", "photos/class 0")
    assert among.code == 2
    assert "--confusion" in among.error
    same = run(*command, "--confusion", ".", "--json", "pets.json")
    assert (same.code, "the place of another result" in same.error) == (2, True)


def test_evaluate_loads_the_backbone_at_the_size_of_the_task(workspace: Path, run: Run) -> None:
    assert run("evaluate", "large.safetensors", *BACKBONE, "--data", "folder:photos").code == 0


def test_a_task_that_does_not_compose_is_evaluated_alone(workspace: Path, run: Run) -> None:
    assert run("evaluate", "shared.safetensors", *BACKBONE, "--data", "folder:photos").code == 0


def test_paths_and_names_may_hold_equals_signs(workspace: Path, run: Run) -> None:
    shutil.copytree("photos", "a=b")
    task = memtok.load_task("head.safetensors", memtok.load_backbone("tiny.safetensors"))
    task.name = "x=y"
    task.save("odd.safetensors")
    for spec in ("x=y=folder:a=b", "folder:a=b"):
        found = run("evaluate", "odd.safetensors", *BACKBONE, "--data", spec, "--json", "o.json")
        assert found.code == 0, found.err
        assert load_json("o.json")["tasks"].keys() == {"x=y"}


# predict


def test_predict_prints_and_writes(workspace: Path, run: Run) -> None:
    tasks = ("pets.safetensors", "head.safetensors", *BACKBONE)
    images = ("--images", "photos/class 0", "photos/class 1/2.png")
    found = run("predict", *tasks, *images, "--top", "2", "--json", "o.json", "--csv", "o.csv")
    assert found.code == 0, found.err
    lines = found.out.splitlines()
    assert lines[0].split() == ["image", "task", "class", "probability"]
    assert len(lines) == 1 + 5 * 2 * 2
    stored = load_json("o.json")
    assert [image["path"] for image in stored["images"]][-1] == "photos/class 1/2.png"
    first = stored["images"][0]["tasks"]["pets"][0]
    assert f"{first['class']}" in lines[1]
    assert f"{first['probability']:.4f}" in lines[1]
    assert Path("o.csv").read_text().count("\n") == 1 + 5 * 2 * 2


def test_answers_come_in_the_order_of_the_files(workspace: Path, run: Run) -> None:
    """Also where a file comes before the one that it extends."""
    found = run("predict", "more.safetensors", "pets.safetensors", *BACKBONE, "--images", "photos/class 0/1.png")
    assert [line.split()[2] for line in found.out.splitlines()[1:]] == ["more", "pets"]


def test_predict_names_a_bad_image(workspace: Path, run: Run) -> None:
    Path("photos/class 0/bad.png").write_bytes(b"nothing")
    predict = ("predict", "pets.safetensors", *BACKBONE, "--json", "o.json")
    failed = run(*predict, "--images", "photos", "--on-bad-image", "fail")
    assert failed.code == 1
    assert "photos/class 0/bad.png" in failed.error
    done = run(*predict, "--images", "photos")
    assert done.code == 0
    assert len(done.out.splitlines()) == 1 + 12
    assert "note: left out: 1 (" in done.err
    assert "note: left out: photos/class 0/bad.png (not an image" in done.err
    assert [one["path"] for one in load_json("o.json")["left_out"]] == ["photos/class 0/bad.png"]
    nothing = run(*predict, "--images", "photos/class 0/bad.png")
    assert nothing.code == 1
    assert "expected an image that can be read, found none" in nothing.err
    assert load_json("o.json")["images"] == []


# concat


def test_concat_needs_no_backbone_and_changes_no_number(workspace: Path, run: Run) -> None:
    Path("tiny.safetensors").rename("kept.safetensors")
    found = run(
        "concat",
        "more.safetensors",
        "head.safetensors",
        "pets.safetensors",
        "--out",
        "all.safetensors",
        "--json",
        "c.json",
    )
    assert found.code == 0, found.err
    assert load_json("c.json")["tasks"] == ["more", "head", "pets"]
    backbone = memtok.load_backbone("kept.safetensors")
    together = {task.name: task for task in memtok.load_tasks("all.safetensors", backbone)}
    pets = memtok.load_task("pets.safetensors", backbone)
    assert together["pets"].fingerprint == pets.fingerprint
    for name, tensor in pets.tensors().items():
        assert torch.equal(tensor, together["pets"].tensors()[name])
    assert together["more"].extends == (together["pets"],)


def test_concat_takes_what_several_extend_once(workspace: Path, run: Run) -> None:
    assert run("concat", "pets.safetensors", "more.safetensors", "--out", "two.safetensors").code == 0
    assert (
        run("concat", "two.safetensors", "pets.safetensors", "head.safetensors", "--out", "three.safetensors").code == 0
    )
    assert [header["name"] for header in read_header("three.safetensors")] == ["pets", "more", "head"]


def test_concat_in_any_order_of_files_that_hold_each_others_ancestors(workspace: Path, run: Run) -> None:
    """File one holds the first and the third generation, file two the second."""
    backbone, (pets,) = _with_pets()
    more = memtok.load_task("more.safetensors", backbone, [pets])
    third = memtok.Task.create(backbone, name="third", classes=["a", "b"], extends=[more], seed=0)
    third.save("third.safetensors")
    from memtok.bundle import read_stored, write_stored

    write_stored([*read_stored("third.safetensors"), *read_stored("pets.safetensors")], "odd.safetensors")
    assert run("verify", "odd.safetensors", "more.safetensors", *BACKBONE).code == 0
    assert run("concat", "odd.safetensors", "more.safetensors", "--out", "all.safetensors").code == 0
    assert run("verify", "all.safetensors", *BACKBONE).code == 0


def test_concat_refuses_a_changed_file(workspace: Path, run: Run) -> None:
    from memtok.bundle import read_stored, write_stored

    [stored] = read_stored("pets.safetensors")
    stored.tensors["memory"][0, 0, 0] += 1.0
    write_stored([stored], "changed.safetensors")
    found = run("concat", "changed.safetensors", "head.safetensors", "--out", "all.safetensors")
    assert found.code == 1
    assert "expected the content of 'pets' in changed.safetensors to match its fingerprint" in found.error
    assert not Path("all.safetensors").exists()


# verify


def test_verify_passes_and_prints_the_largest_difference(workspace: Path, run: Run) -> None:
    found = run("verify", "more.safetensors", "pets.safetensors", "head.safetensors", *BACKBONE, "--json", "v.json")
    assert found.code == 0, found.err
    result = load_json("v.json")
    assert result["ok"] is True
    assert result["base"] == {"bitwise": True, "features_bitwise": True, "difference": 0.0}
    assert result["largest_difference"] == max(row["difference"] for row in result["tasks"].values()) <= 1e-5
    assert f"{result['largest_difference']:.2e}" in found.out
    assert found.out.splitlines()[-1] == "verified"


def test_verify_on_data(workspace: Path, run: Run) -> None:
    found = run("verify", "pets.safetensors", *BACKBONE, "--data", "folder:photos", "--images", "2")
    assert found.code == 0, found.err
    assert "2 images of folder:photos" in found.out


def test_verify_that_fails_exits_with_1(workspace: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from memtok import layout

    def blind(self: Any, tasks: Any, family: Any) -> torch.Tensor:
        mask = original(self, tasks, family)
        mask[:, -1] = False  # the last memory cell is forgotten
        return mask

    original = layout.Layout.family_mask
    monkeypatch.setattr(layout.Layout, "family_mask", blind)
    found = run("verify", "pets.safetensors", *BACKBONE, "--json", "v.json")
    assert found.code == 1
    assert "NOT verified" in found.out
    assert load_json("v.json")["failures"][0].startswith("task 'pets' differs from the reference")
    assert found.err == ""


@pytest.mark.parametrize("fault", ["memory of two layers swapped", "memory before the last step, in float32 alone"])
def test_verify_tells_a_fault_from_rounding(
    workspace: Path, run: Run, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    def wrong(self: memtok.MemoryViT, images: torch.Tensor, **more: Any) -> memtok.Outputs:
        other = copy.deepcopy(self)
        with torch.no_grad():
            for memory in (task.memory for task in other.tasks):
                if "swapped" in fault:
                    memory.copy_(memory.flip(0))
                elif memory.dtype == torch.float32:
                    memory.sub_(0.01 * memory.abs())
        return forward(other, images, **more)

    forward = memtok.MemoryViT.forward
    monkeypatch.setattr(memtok.MemoryViT, "forward", wrong)
    found = run("verify", "pets.safetensors", *BACKBONE, "--json", "v.json")
    assert found.code == 1
    result = load_json("v.json")
    assert result["ok"] is result["tasks"]["pets"]["ok"] is False
    assert result["tasks"]["pets"]["alone"] <= result["tasks"]["pets"]["tolerance"]
    assert found.out.splitlines()[-1] == "NOT verified"


def test_verify_without_tasks(workspace: Path, run: Run) -> None:
    assert run("verify", *BACKBONE).code == 0


# inspect


def test_inspect_says_all_of_a_task(workspace: Path, run: Run) -> None:
    assert run("train", *QUICK, "--regime", "memory", "--out", "new.safetensors").code == 0
    found = run("inspect", "new.safetensors", "--json", "i.json")
    assert found.code == 0
    (header,) = read_header("new.safetensors")
    for text in (
        header["fingerprint"],
        header["backbone"]["fingerprint"][:19],
        "class 0, class 1, class 2",
        "folder:photos",
    ):
        assert text in found.out
    (contents,) = load_json("i.json")["files"]
    assert (contents["kind"], contents["path"]) == ("tasks", "new.safetensors")
    assert contents["bytes"] == Path("new.safetensors").stat().st_size
    (task,) = contents["tasks"]
    assert task["tensors"]["memory"] == {"shape": [2, 5, 32], "dtype": "F32", "bytes": 4 * 2 * 5 * 32}
    assert task["parameters"] == 32 + 2 * 5 * 32 + 3 * 32 + 3
    assert task["record"] == header["record"]


def test_inspect_composed_files_and_backbones(workspace: Path, run: Run) -> None:
    run("concat", "pets.safetensors", "more.safetensors", "--out", "all.safetensors")
    found = run("inspect", "all.safetensors", "tiny.safetensors", "--json", "i.json")
    assert found.code == 0
    composed, model = load_json("i.json")["files"]
    assert [task["name"] for task in composed["tasks"]] == ["pets", "more"]
    assert composed["tasks"][1]["extends"][0]["name"] == "pets"
    assert "extends" in found.out
    assert model["kind"] == "model"
    assert "a whole model, no task" in found.out


def test_inspect_a_folder_with_a_backbone(workspace: Path, run: Run) -> None:
    Path("folder").mkdir()
    Path("folder/config.json").write_text('{"architecture": "vit_tiny_patch16_224"}')
    shutil.copy("tiny.safetensors", "folder/model.safetensors")
    found = run("inspect", "folder")
    assert found.code == 0
    assert "vit_tiny_patch16_224" in found.out


def test_names_from_files_cannot_steer_the_terminal(workspace: Path, run: Run) -> None:
    task = memtok.load_task("head.safetensors", memtok.load_backbone("tiny.safetensors"))
    task.classes = ("\x1b[31mred", "two\nlines", "[bold]plain[/bold]")
    task.save("odd.safetensors")
    found = run("inspect", "odd.safetensors")
    assert "\x1b" not in found.out
    assert "\\x1b[31mred, two\\nlines, [bold]plain[/bold]" in found.out


# quickstart


@pytest.mark.parametrize(("ok", "code"), [(True, 0), (False, 1)])
def test_quickstart_runs_the_librarys(
    ok: bool, code: int, workspace: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[tuple[Any, ...]] = []

    def stub(out: Path, *, seed: int, progress: bool) -> Any:
        called.append((out, seed, progress))
        return types.SimpleNamespace(ok=ok, to_json=lambda: {"ok": ok})

    monkeypatch.setattr("memtok.quickstart.run", stub)
    assert run("quickstart", "--out", "here", "--seed", "3", "--json", "q.json").code == code
    assert called == [(Path("here"), 3, True)]
    assert load_json("q.json") == {"ok": ok}


def test_the_shipped_backbone_is_called_small(workspace: Path, run: Run) -> None:
    words = ("--backbone", "small", "--data", "folder:photos", "--steps", "1", "--batch-size", "4", "--device", "cpu")
    assert run("train", *words, "--out", "new.safetensors").code == 0
    (header,) = read_header("new.safetensors")
    assert header["backbone"]["source"] == "small"
    assert run("verify", "new.safetensors", "--backbone", "small").code == 0


def test_predict_unknown_below(workspace: Path, run: Run) -> None:
    words = ("predict", "pets.safetensors", "head.safetensors", *BACKBONE, "--images", "photos/class 0/0.png")
    found = run(*words, "--unknown-below", "0", "pets=1", "--json", "p.json", "--csv", "p.csv", "--top", "2")
    assert found.code == 0, found.err
    stored = json.loads(Path("p.json").read_text())
    assert stored["unknown_below"] == {"pets": 1.0, "head": 0.0}
    (image,) = stored["images"]
    assert image["answers"] == {"pets": None, "head": image["tasks"]["head"][0]["class"]}
    assert [line.split(",")[-1] for line in Path("p.csv").read_text().splitlines()] == [
        "unknown",
        "true",
        "true",
        "false",
        "false",
    ]
    assert found.out.count("unknown (") == 1
    Path("p.yaml").write_text("unknown_below: [0.3, head=0.2]\n")
    assert run(*words, "--config", "p.yaml", "--json", "p.json").code == 0
    assert json.loads(Path("p.json").read_text())["unknown_below"] == {"pets": 0.3, "head": 0.2}
    printed = run(*words, "--unknown-below", "0.4", "--print-config")
    Path("p.yaml").write_text(printed.out)
    assert run(*words, "--config", "p.yaml", "--json", "p.json").code == 0
    assert json.loads(Path("p.json").read_text())["unknown_below"] == {"pets": 0.4, "head": 0.4}
    for wrong in (("1.5",), ("pets=x",), ("dogs=0.5",), ("0.1", "0.2"), ("pets=0.1", "pets=0.2")):
        found = run(*words, "--unknown-below", *wrong)
        assert found.code == 2, wrong
        assert "--unknown-below" in found.error
