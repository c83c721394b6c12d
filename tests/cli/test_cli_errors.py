"""Wrong arguments exit with 2, work that fails with 1; each says so in one line and leaves nothing half-written."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch._inductor.config
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

import memtok
from memtok.cli import COMMANDS
from memtok.cli.output import check_outputs
from memtok.training.compiler import check_inductor
from tests.cli.conftest import Run

BACKBONE = ("--backbone", "tiny.safetensors")
TRAIN = ("train", *BACKBONE, "--data", "folder:photos", "--device", "cpu", "--out", "new.safetensors")
EVALUATE = ("evaluate", "pets.safetensors", *BACKBONE)

WRONG_ARGUMENTS = {
    "no command": ((), "expected a command (quickstart, train, "),
    "unknown command": (("trane",), "found 'trane' (did you mean train?); see `memtok --help`"),
    "option without command": (("--backbone", "x"), "expected a command"),
    "unknown option": ((*TRAIN, "--stepz", "3"), "expected options of this command, found --stepz"),
    "abbreviated option": ((*TRAIN, "--step", "3"), "found --step"),
    "no backbone": (("train", "--data", "digits", "--out", "x.safetensors"), "expected --backbone, found none"),
    "no value": (("train", "--backbone"), "expected a value after --backbone, found none"),
    "empty value": ((*TRAIN, "--name", ""), "expected --name as a text that is not empty, found ''"),
    "negative memory": ((*TRAIN, "--memory", "-1"), "expected --memory as a whole number of 0 or more, found '-1'"),
    "half a memory": ((*TRAIN, "--memory", "1.5"), "expected --memory as a whole number of 0 or more, found '1.5'"),
    "no queries": ((*TRAIN, "--queries", "0"), "expected --queries as a whole number of 1 or more, found '0'"),
    "no steps": ((*TRAIN, "--steps", "0"), "expected --steps as a whole number of 1 or more"),
    "steps and epochs": ((*TRAIN, "--steps", "2", "--epochs", "2"), "expected --steps or --epochs, found both"),
    "rate": ((*TRAIN, "--learning-rate", "nan"), "expected --learning-rate as a finite number above 0, found 'nan'"),
    "regime": ((*TRAIN, "--regime", "magic"), "expected --regime as one of memory, head, readout, side"),
    "recipe": ((*TRAIN, "--recipe", "magic"), "expected --recipe as one of default, paper, reproduction, found"),
    "precision": ((*TRAIN, "--precision", "half"), "expected --precision as one of float32, bf16, found 'half'"),
    "augment": ((*TRAIN, "--augment", "cutmix"), "expected --augment as one of inception, light, crop, none"),
    "traces on tape": ((*TRAIN, "--keep-traces", "tape"), "expected --keep-traces as one of ram, disk, gpu, found"),
    "views alone": ((*TRAIN, "--views", "2"), "expected --views where traces are kept, found no --keep-traces"),
    "no views": ((*TRAIN, "--keep-traces", "ram", "--views", "0"), "expected --views as a whole number of 1 or more"),
    "a limit of traces alone": ((*TRAIN, "--trace-limit", "2"), "expected --trace-limit where traces are kept"),
    "traces in ram in a folder": (
        (*TRAIN, "--keep-traces", "ram", "--trace-dir", "traces"),
        "expected --trace-dir where traces are kept on disk, found --keep-traces ram; use --keep-traces disk, or leave "
        "--trace-dir out",
    ),
    "a folder of no traces": (
        (*TRAIN, "--trace-dir", "traces"),
        "expected --trace-dir where traces are kept on disk, found no --keep-traces; use --keep-traces disk, or leave "
        "--trace-dir out",
    ),
    "names of arguments among the data": (
        ("train", *BACKBONE, "--data", "keep_traces=None", "--out", "new.safetensors"),
        "found 'keep_traces=None'",
    ),
    "traces of a whole model": (
        (*TRAIN, "--keep-traces", "ram", "--regime", "full"),
        "expected a composable task (--regime memory or head or readout or side) with --keep-traces, found --regime "
        "full",
    ),
    "traces among the pictures": (
        (*TRAIN, "--keep-traces", "disk", "--trace-dir", "photos/traces"),
        "expected --trace-dir outside the folder of images, found photos/traces in it",
    ),
    "the run among the pictures": (
        (*TRAIN, "--out", "photos/new.safetensors"),
        "expected --out outside the folder of images, found photos/new.run in it",
    ),
    "traces on a GPU that is not there": (
        (*TRAIN, "--keep-traces", "gpu", "--device", "cpu"),
        "expected a GPU to keep traces on, found the CPU",
    ),
    "bad image": ((*TRAIN, "--on-bad-image", "eat"), "expected --on-bad-image as one of skip, fail, found 'eat'"),
    "head beside head": ((*TRAIN, "--regime", "head", "--compare-head"), "expected no --compare-head in regime 'head'"),
    "solver and steps": (
        (*TRAIN, "--regime", "readout", "--solver", "ridge", "--steps", "3"),
        "expected no --steps with --solver ridge",
    ),
    "solver and memory": ((*TRAIN, "--solver", "ridge"), "expected --regime readout with --solver ridge"),
    "sweep of a solver and heads": (
        ("sweep", *BACKBONE, *("--data", "digits", "--out", "new", "--solver", "ridge"), "--regimes", "head"),
        "expected regime readout, or head with --readouts above 0, for --solver ridge, found head",
    ),
    "sweep of a solver and rates": (
        ("sweep", *BACKBONE, *("--data", "digits", "--out", "new", "--solver", "ridge"), "--learning-rates", "1"),
        "expected no learning_rates and weight_decays with --solver ridge",
    ),
    "memory without regime": ((*TRAIN, "--regime", "head", "--memory", "3"), "expected --memory 0 in regime 'head'"),
    "full and extends": (
        (*TRAIN, "--regime", "full", "--extends", "pets.safetensors"),
        "expected no --extends in regime 'full'",
    ),
    "shared and queries": ((*TRAIN, "--regime", "memory-shared", "--queries", "2"), "expected --queries 1 in regime"),
    "resume and overwrite": ((*TRAIN, "--resume", "--overwrite"), "expected --resume or --overwrite, found both"),
    "base as a name": ((*TRAIN, "--name", "base"), "expected a task name other than 'base'"),
    "out without ending": ((*TRAIN, "--out", "new.bin"), "expected a file name that ends in .safetensors"),
    "out is a folder": ((*TRAIN, "--out", "photos"), "found the folder photos"),
    "unknown data": ((*TRAIN, "--data", "cifar11"), "sun397, folder:PATH), found 'cifar11'"),
    "folder without prefix": ((*TRAIN, "--data", "photos"), "found 'photos'; write folder:photos"),
    "folder without path": ((*TRAIN, "--data", "folder:"), "expected a data set"),
    "json is a folder": ((*TRAIN, "--json", "photos"), "expected a file name for the result, found the folder photos"),
    "evaluate without data": (EVALUATE, "expected --data, found none"),
    "data for nobody": ((*EVALUATE, "--data", "cars=digits"), "one of the names pets, base, found 'cars=digits'"),
    "data twice": ((*EVALUATE, "--data", "pets=digits", "pets=mnist"), "expected one data source for 'pets'"),
    "two nameless": ((*EVALUATE, "--data", "digits", "mnist"), "expected NAME=SPEC"),
    "unknown data by name": ((*EVALUATE, "--data", "pets=cifar11"), "expected a data set"),
    "unknown part": ((*EVALUATE, "--data", "digits", "--part", "all"), "expected --part as one of test, validation"),
    "unknown device": ((*EVALUATE, "--data", "digits", "--device", "toaster"), "expected a device such as auto"),
    "no images": (("predict", "pets.safetensors", *BACKBONE), "expected --images, found none"),
    "no top": (("predict", *BACKBONE, "--images", "photos", "--top", "0"), "expected --top as a whole number of 1"),
    "concat nothing": (("concat", "--out", "all.safetensors"), "expected FILE, found none"),
    "concat nowhere": (("concat", "pets.safetensors"), "expected --out, found none"),
    "result over an input": (
        ("concat", "pets.safetensors", "--out", "all.safetensors", "--json", "pets.safetensors"),
        "found pets.safetensors as a file that the command reads",
    ),
    "prediction over an image": (
        ("predict", "pets.safetensors", *BACKBONE, "--images", "photos/class 0/0.png", "--csv", "photos/class 0/0.png"),
        "found 0.png as a file that the command reads",
    ),
    "two results in one file": (
        ("predict", "pets.safetensors", *BACKBONE, "--images", "photos", "--csv", "o", "--json", "o"),
        "found o as the place of another result",
    ),
    "task over what it extends": (
        ("train", *BACKBONE, "--data", "folder:photos", "--extends", "pets.safetensors", "--out", "pets.safetensors"),
        "found pets.safetensors as a file that the command reads",
    ),
    "concat over its source": (
        ("concat", "pets.safetensors", "head.safetensors", "--out", "./pets.safetensors"),
        "expected a file of its own for each result, found pets.safetensors as a file that the command reads",
    ),
    "concat to another ending": (("concat", "pets.safetensors", "--out", "all.zip"), "expected --out as FILE."),
    "verify unknown data": (("verify", *BACKBONE, "--data", "cifar11"), "expected a data set"),
    "inspect nothing": (("inspect",), "expected FILE, found none"),
    "no such configuration": (("train", "--config", "gone.yaml"), "expected a readable YAML file after --config"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_ARGUMENTS)
def test_wrong_arguments_exit_with_2(name: str, workspace: Path, run: Run) -> None:
    words, expected = WRONG_ARGUMENTS[name]
    before = listing(workspace)
    found = run(*words)
    program = f"memtok {words[0]}" if words and words[0] in COMMANDS else "memtok"
    assert found.error.startswith(f"{program}: error: expected ")
    assert expected in found.error
    assert found.code == 2
    assert found.out == ""
    assert listing(workspace) == before


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("batch-sise: 4\n", "expected options of this command in the configuration, found 'batch-sise'"),
        ("memory: -1\n", "expected --memory as a whole number of 0 or more, found '-1'"),
        ("memory: [1]\n", "expected --memory as a whole number"),
        ("steps: [\n", "expected YAML in the configuration"),
        ("just words\n", "expected "),
        ("extends: pets.safetensors\n", "expected a list for --extends"),
        ("extends: 5\n", "expected a list for --extends in the configuration, found 5; write [5]"),
        ("extends: {a: 1}\n", "expected a list for --extends in the configuration, found {'a': 1}; write [a, b]"),
        ("extends: [[a]]\n", "expected --extends as a text that is not empty, found ['a']; change it"),
        ("resume: perhaps\n", "expected true or false for --resume in the configuration, found 'perhaps'; write one"),
        ("resume: 5\n", "expected true or false for --resume in the configuration, found 5; write one of them"),
        ("flip: 3\n", "expected true or false for --flip in the configuration, found 3; write one of them"),
        ("backbone: [a]\n", "expected --backbone as a text that is not empty, found ['a']; change it"),
        ("name: true\n", "expected --name as a text that is not empty, found 'True'; change it"),
        ('out: "a\\0b"\n', "expected --out without a zero byte, found 'a\\x00b'; leave it out"),
        ('json: "a\\0b"\n', "expected --json without a zero byte"),
        ("a: &a [*a]\n", "expected options of this command in the configuration, found values that hold themselves"),
        ("out: &a [*a]\n", "expected --out as a text"),
    ],
)
def test_wrong_configurations(content: str, expected: str, workspace: Path, run: Run) -> None:
    Path("train.yaml").write_text(content)
    found = run("train", "--config", "train.yaml")
    assert expected in found.error
    assert found.code == 2


def test_a_number_in_a_configuration_may_be_a_text(workspace: Path, run: Run) -> None:
    Path("concat.yaml").write_text("files: [3]\nout: 4\n")
    found = run("concat", "--config", "concat.yaml")
    assert "expected --out as FILE.safetensors, found '4'" in found.error


FOLDER = ("--backbone", "model")
REPLACING = {
    "train": ("train", *FOLDER, "--data", "digits", "--out", "model/part.safetensors"),
    "train, a picture": (*TRAIN, "--json", "photos/class 0/0.png"),
    "evaluate": ("evaluate", *FOLDER, "--data", "base=digits", "--csv", "model/config.json"),
    "evaluate, a picture": ("evaluate", *BACKBONE, "--data", "base=folder:photos", "--json", "photos/class 0/0.png"),
    "predict": ("predict", *FOLDER, "--images", "photos", "--json", "model/config.json"),
    "predict, a picture": ("predict", *BACKBONE, "--images", "photos", "--csv", "photos/class 0/0.png"),
    "verify": ("verify", *FOLDER, "--json", "model/config.json"),
    "verify, a picture": ("verify", *BACKBONE, "--data", "folder:photos", "--json", "photos/class 0/0.png"),
    "inspect": ("inspect", "model", "--json", "model/config.json"),
    "through a link": ("inspect", "link", "--json", "model/config.json"),
    "a link": ("inspect", "model", "--json", "model/linked.json"),
}


@pytest.mark.parametrize("words", REPLACING.values(), ids=REPLACING)
def test_no_result_replaces_a_file_in_a_folder_that_is_read(words: tuple[str, ...], workspace: Path, run: Run) -> None:
    Path("model").mkdir()
    for name in ("config.json", "part.safetensors"):
        Path("model", name).write_text("{}")
    Path("link").symlink_to("model")
    Path("model/linked.json").symlink_to(Path("pets.safetensors").absolute())
    before = {path: path.read_bytes() for path in workspace.rglob("*") if path.is_file()}
    found = run(*words)
    assert f"found {Path(words[-1]).name} as a file that the command reads; name another" in found.error
    assert found.code == 2
    assert {path: path.read_bytes() for path in workspace.rglob("*") if path.is_file()} == before


def test_results_may_lie_in_a_folder_that_is_read(workspace: Path, run: Run) -> None:
    for _ in range(2):
        check_outputs("photos/result.csv", inputs=["tiny.safetensors"], pictures=["photos", "pets=folder:photos"])
        Path("photos/result.csv").write_text("")
    check_outputs("photos/new.json", inputs=["photos"])
    Path("photos/new.safetensors").write_text("")
    words = ("train", "--backbone", "photos", "--data", "cifar11", "--out", "photos/new.safetensors")
    assert "as a file that the command reads" in run(*words).error
    Path("photos/new.run").mkdir()  # of a training that began there, and goes on
    assert "found 'cifar11'" in run(*words).error


def test_a_printed_configuration_can_be_read_back(workspace: Path, run: Run) -> None:
    words = ("evaluate", "pets.safetensors", *BACKBONE, "--data", "pets=folder:photos", "--batch-size", "3")
    printed = run(*words, "--print-config")
    assert printed.code == 0
    Path("evaluate.yaml").write_text(printed.out)
    direct, read = run(*words), run("evaluate", "--config", "evaluate.yaml")
    assert (read.code, read.out) == (0, direct.out)


# What is found in files: exit code 1


def fails(run: Run, *words: object, expect: str) -> None:
    """The command exits with 1, one line, and leaves no new file."""
    before = listing(Path())
    found = run(*words)
    assert expect in found.error
    assert ": error: expected " in found.error
    assert "; " in found.error  # what to do
    assert found.code == 1
    assert listing(Path()) == before


USES = {
    "evaluate": ("evaluate", "FILE", *BACKBONE, "--data", "folder:photos"),
    "predict": ("predict", "FILE", *BACKBONE, "--images", "photos"),
    "verify": ("verify", "FILE", *BACKBONE),
    "concat": ("concat", "FILE", "--out", "all.safetensors"),
    "inspect": ("inspect", "FILE"),
    "train": (*TRAIN, "--extends", "FILE"),
}


@pytest.mark.parametrize("command", USES)
def test_files_that_are_no_task_files(command: str, workspace: Path, run: Run) -> None:
    def use(file: str, expect: str) -> None:
        fails(run, *(file if word == "FILE" else word for word in USES[command]), expect=expect)

    use("gone.safetensors", "expected the file gone.safetensors, found none")
    Path("words.safetensors").write_text("these are words, and no numbers at all")
    use("words.safetensors", "found something else or a truncated one in words.safetensors")
    Path("empty.safetensors").write_bytes(b"")
    use("empty.safetensors", "found something else or a truncated one")
    content = Path("pets.safetensors").read_bytes()
    Path("cut.safetensors").write_bytes(content[:-40])
    use("cut.safetensors", "the file is truncated")
    Path("cut.safetensors").write_bytes(content[:40])
    use("cut.safetensors", "found something else or a truncated one")
    torch.save({"memory": torch.zeros(2)}, "pickle.safetensors")
    use("pickle.safetensors", "found a pickle or PyTorch checkpoint")
    save_file({"weight": torch.zeros(2)}, "foreign.safetensors")
    use("foreign.safetensors", "foreign.safetensors")
    rewrite("pets.safetensors", "future.safetensors", format_version=99)
    use("future.safetensors", "expected a task file of format version 1, found 99")


@pytest.mark.parametrize("command", USES)
def test_a_pipe_as_task_file_is_not_waited_for(command: str, workspace: Path, run: Run) -> None:
    os.mkfifo("pipe.safetensors")
    words = ("pipe.safetensors" if word == "FILE" else word for word in USES[command])
    fails(run, *words, expect="expected a safetensors file, found a named pipe at pipe.safetensors")


def test_no_pipe_or_device_is_waited_for(workspace: Path, run: Run) -> None:
    """The other files that commands read: models, their shards, old checkpoints, lists of classes, configurations."""
    os.mkfifo("pipe.pt")
    os.mkfifo("pipe.txt")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("socket.safetensors")
    fails(run, "verify", "pets.safetensors", "--backbone", "pipe.pt", expect="found a named pipe at pipe.pt")
    fails(run, "verify", "pets.safetensors", "--backbone", "socket.safetensors", expect="found a socket at")
    fails(run, "verify", "pets.safetensors", "--backbone", "/dev/zero", expect="found a device at /dev/zero")
    Path("sharded").mkdir()
    Path("sharded/config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_224"}))
    Path("sharded/model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"norm.weight": "one.safetensors"}})
    )
    os.mkfifo("sharded/one.safetensors")
    fails(run, "verify", "pets.safetensors", "--backbone", "sharded", expect="found a named pipe at sharded/one")
    legacy = ("import-legacy", "pipe.pt", *BACKBONE, "--out", "tasks")
    fails(run, *legacy, expect="expected an old checkpoint, found a named pipe at pipe.pt")
    Path("models").mkdir()
    os.mkfifo("models/A_model.pt")
    fails(run, "import-legacy", "models", *BACKBONE, "--out", "tasks", expect="found a named pipe at models/A_model.pt")
    fails(run, *legacy, "--classes", "pipe.txt", expect="expected a text file of class names, found a named pipe")
    for words in (("--config", "pipe.txt"), ("--config=pipe.txt",)):
        found = run("inspect", *words)
        assert (found.code, "found a named pipe at pipe.txt" in found.error) == (2, True)


def test_what_is_no_file_among_the_images_is_not_waited_for(workspace: Path, run: Run) -> None:
    os.mkfifo("photos/class 0/x.png")
    Path("photos/class 1/self.png").symlink_to("self.png")
    train = (*TRAIN, "--steps", "1")
    fails(run, *train, expect="found 2 that are not, the first one photos/class 0/x.png (named pipe); mend or remove")
    Path("photos/class 1/self.png").unlink()
    fails(run, *train, expect="use --on-bad-image skip")
    Path("photos/class 1/self.png").symlink_to("self.png")
    found = run(*train, "--on-bad-image", "skip")
    assert found.code == 0, found.err
    assert "left out: 2 (" in found.err
    assert "left out: photos/class 0/x.png (named pipe)" in found.err
    assert run("evaluate", "new.safetensors", *BACKBONE, "--data", "folder:photos").code == 1
    assert run("evaluate", "new.safetensors", *BACKBONE, "--data", "folder:photos", "--on-bad-image", "skip").code == 0
    assert run("verify", "new.safetensors", *BACKBONE, "--data", "folder:photos", "--on-bad-image", "skip").code == 0
    assert run("predict", "new.safetensors", *BACKBONE, "--images", "photos").code == 0


def test_what_the_shell_has_opened_is_read(workspace: Path, run: Run) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"top: 2\nimages: [photos]\nbackbone: tiny.safetensors\n")
    os.close(writing)
    found = run("predict", "pets.safetensors", "--config", f"/dev/fd/{reading}", "--device", "cpu")
    os.close(reading)
    assert found.code == 0, found.err
    assert len(found.out.splitlines()) == 1 + 12 * 2


def rewrite(source: str, target: str, **changes: object) -> None:
    """A task file with another header."""
    with safe_open(source, framework="pt") as stream:
        tensors = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118 - not a mapping
        header = json.loads(stream.metadata()["memtok"])
    save_file(tensors, target, metadata={"memtok": json.dumps(header | changes)})


@pytest.mark.parametrize("command", ["evaluate", "predict", "verify", "train"])
def test_a_task_of_another_backbone(command: str, workspace: Path, run: Run) -> None:
    words = ("strange.safetensors" if word == "FILE" else word for word in USES[command])
    fails(run, *words, expect="on which 'strange' in strange.safetensors was trained, found tiny.safetensors")


@pytest.mark.parametrize("command", ["evaluate", "predict", "verify", "concat"])
def test_a_missing_ancestor(command: str, workspace: Path, run: Run) -> None:
    words = ("more.safetensors" if word == "FILE" else word for word in USES[command])
    fails(run, *words, expect="expected 'pets' (sha256:")


@pytest.mark.parametrize("command", ["evaluate", "predict", "verify", "concat"])
def test_tasks_that_do_not_fit_together(command: str, workspace: Path, run: Run) -> None:
    def use(*files: str, expect: str) -> None:
        words = list(USES[command])
        words[1:2] = files
        if command == "evaluate":
            words[-1] = "pets=folder:photos"
        fails(run, *words, expect=expect)

    use("pets.safetensors", "pets.safetensors", expect="expected tasks of different names, found 'pets' in")
    use("pets.safetensors", "large.safetensors", expect="image_size")
    if command != "verify":  # which checks such a task by itself
        use("pets.safetensors", "shared.safetensors", expect="found 'shared' of regime 'memory-shared'")
    if command == "concat":
        use("pets.safetensors", "strange.safetensors", expect="expected tasks of one backbone")


def test_another_task_of_the_same_name(workspace: Path, run: Run) -> None:
    task = memtok.load_task("head.safetensors", memtok.load_backbone("tiny.safetensors"))
    task.name = "pets"
    task.save("twin.safetensors")
    files = ("pets.safetensors", "more.safetensors", "twin.safetensors")
    fails(run, "verify", *files, *BACKBONE, expect="found 'pets' in pets.safetensors and in twin.safetensors")


def test_extending_what_does_not_compose(workspace: Path, run: Run) -> None:
    fails(run, *TRAIN, "--extends", "shared.safetensors", expect="found 'shared' of regime 'memory-shared'")


def test_extending_at_another_image_size(workspace: Path, run: Run) -> None:
    words = ("--extends", "large.safetensors", "--image-size", "32")
    fails(
        run, *TRAIN, *words, expect="expected images of 48x48 px, with which 'large' was trained, found --image-size 32"
    )


def test_extending_a_task_of_the_same_name(workspace: Path, run: Run) -> None:
    fails(run, *TRAIN, "--name", "pets", "--extends", "pets.safetensors", expect="found 'pets' twice")


@pytest.mark.parametrize(
    ("source", "expect"),
    [
        ("./gone", "found nothing at ./gone"),
        ("gone.safetensors", "found nothing at gone.safetensors"),
        ("pets.safetensors", "expected a backbone, found a memtok task file"),
        ("photos", "photos"),
        ("vit_of_nobody", "vit_of_nobody"),
    ],
)
def test_sources_that_are_no_backbone(source: str, expect: str, workspace: Path, run: Run) -> None:
    fails(run, "train", "--backbone", source, *TRAIN[3:], expect=expect)
    fails(run, "verify", "--backbone", source, expect=expect)


def test_folders_that_cannot_be_trained_on(workspace: Path, run: Run) -> None:
    def use(folder: str, expect: str) -> None:
        fails(run, *TRAIN, "--data", f"folder:{folder}", expect=expect)

    use("gone", "expected a folder of images, found nothing at gone")
    Path("empty").mkdir()
    use("empty", "expected one folder of images per class")
    shutil.copytree("photos/class 0", "one/class 0")
    use("one", "expected at least two class folders in one, found only 'class 0'")
    shutil.copytree("photos", "split/train")
    Path("split/val").mkdir()
    use("split", "expected images in split/val, found none")


def test_evaluating_on_other_classes(workspace: Path, run: Run) -> None:
    shutil.copytree("photos", "other")
    Path("other/class 1").rename("other/zebra")
    Path("other/memtok-split.json").unlink(missing_ok=True)
    found = run(*EVALUATE, "--data", "folder:other")
    assert "expected only classes of task 'pets' in folder:other" in found.error
    assert found.code == 1


def test_images_that_are_not_there(workspace: Path, run: Run) -> None:
    fails(run, "predict", "pets.safetensors", *BACKBONE, "--images", "gone.png", expect="found nothing")
    Path("empty").mkdir()
    fails(
        run, "predict", "pets.safetensors", *BACKBONE, "--images", "empty", expect="expected images in the folder empty"
    )


def test_training_over_an_unfinished_run(workspace: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from memtok.training.trainer import Trainer

    original = Trainer.step

    def interrupted(self: Trainer, step: int, *more: object) -> torch.Tensor:
        if step == 2:
            raise KeyboardInterrupt
        return original(self, step, *more)  # type: ignore[arg-type]

    quick = (*TRAIN, "--regime", "memory", "--steps", "4", "--batch-size", "4")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", interrupted)
        patch.setattr("memtok.training.plan.VALIDATIONS", 4)
        stopped = run(*quick)
        assert stopped.code == 130
        last = stopped.err.splitlines()[-1]
        resumed = shlex.join(("memtok", *quick, "--resume"))
        assert last == f"memtok train: interrupted, what was written stays; go on with: {resumed}"
        assert run(*quick).code == 1
        assert "found one at step 2 of 4" in run(*quick).error
    done = run(*shlex.split(resumed)[1:])
    assert done.code == 0
    assert "going on after step 2" in done.err
    again = run(*quick)
    assert again.code == 1
    assert "found one at step 4 of 4" in again.error
    assert "--resume goes on with it, --overwrite starts anew" in again.error
    assert run(*quick, "--overwrite").code == 0


def test_a_loss_that_is_not_finite(workspace: Path, run: Run) -> None:
    task = memtok.load_task("pets.safetensors", memtok.load_backbone("tiny.safetensors"))
    found = run(*TRAIN, "--steps", "3", "--batch-size", "4", "--learning-rate", "1e38", "--recipe", "paper")
    assert found.code == 1
    last = found.err.splitlines()[-1]
    assert last.startswith("memtok train: error: expected a finite ")
    assert "learning rate" in last
    assert task is not None


# Errors that nobody foresaw


def test_an_unexpected_error_is_one_line_unless_asked(
    workspace: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from memtok.cli import inspect

    def broken(options: object) -> int:
        raise RuntimeError("something\nodd")

    monkeypatch.setattr(inspect, "run", broken)
    found = run("inspect", "pets.safetensors")
    assert found.error == (
        "memtok inspect: error: unexpected RuntimeError: something odd; run again with --debug for the traceback"
    )
    assert found.code == 1
    for words in (("inspect", "pets.safetensors", "--debug"), ("--debug", "inspect", "pets.safetensors")):
        debugged = run(*words)
        assert "Traceback" in debugged.err
        assert debugged.err.splitlines()[-1] == "memtok inspect: error: unexpected RuntimeError: something odd"
        assert debugged.code == 1


def test_debug_shows_the_traceback_of_a_foreseen_error(workspace: Path, run: Run) -> None:
    found = run("inspect", "gone.safetensors", "--debug")
    assert "Traceback" in found.err
    assert found.err.splitlines()[-1].startswith("memtok inspect: error: expected the file gone.safetensors")


def test_running_out_of_memory_says_what_to_try(workspace: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from memtok.cli import inspect

    def broken(options: object) -> int:
        raise torch.cuda.OutOfMemoryError("tried to allocate")

    monkeypatch.setattr(inspect, "run", broken)
    assert "try smaller numbers, such as --batch-size" in run("inspect", "pets.safetensors").error


def test_results_go_where_they_can(workspace: Path, run: Run) -> None:
    Path("file").write_text("no folder")
    found = run("inspect", "pets.safetensors", "--json", "file/result.json")
    assert found.code == 1
    assert "expected a folder that can be written" in found.error


@pytest.mark.parametrize("words", [TRAIN, ("sweep", *TRAIN[1:-1], "swept")], ids=["train", "sweep"])
def test_compile_without_a_compiler(words: tuple[str, ...], workspace: Path, run: Run) -> None:
    check_inductor.cache_clear()
    before = listing(workspace)
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        found = run(*words, "--steps", "2", "--compile")
    assert found.code == 1
    assert found.err.splitlines()[-1] == (
        f"memtok {words[0]}: error: expected a working C++ compiler for compile, found none; install one (g++, for "
        "example), or leave --compile out"
    )
    assert listing(workspace) == before


@pytest.fixture
def handlers() -> Iterator[None]:
    """Those of a command in a terminal, whatever shell started the tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler), signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    signal.signal(signal.SIGINT, before[0])
    signal.signal(signal.SIGTERM, before[1])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_the_training(
    workspace: Path, run: Run, monkeypatch: pytest.MonkeyPatch, handlers: None, number: signal.Signals, code: int
) -> None:
    from memtok.training import RichProgress

    def stop(self: RichProgress, step: int) -> None:
        if step == 3:
            signal.raise_signal(number)

    quick = (*TRAIN, "--regime", "memory", "--steps", "9", "--batch-size", "4")
    with monkeypatch.context() as patch:
        patch.setattr("memtok.training.plan.VALIDATIONS", 2)
        patch.setattr(RichProgress, "step", stop)
        stopped = run(*quick)
    assert stopped.code == code
    assert stopped.err.splitlines()[-1].endswith(shlex.join((*quick, "--resume")))
    again = run(*quick)
    assert again.code == 1
    assert "found one at step 3 of 9" in again.error


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_the_data_are_opened(
    workspace: Path, run: Run, monkeypatch: pytest.MonkeyPatch, handlers: None, number: signal.Signals, code: int
) -> None:
    from memtok.training import RichProgress

    monkeypatch.setattr(RichProgress, "reading", lambda self, done, total: signal.raise_signal(number))
    assert run(*TRAIN, "--steps", "9").code == code
    assert not Path("new.run").exists()


def test_a_bad_image_names_the_flag(workspace: Path, run: Run) -> None:
    for name in ("one", "two"):
        Path("photos", name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (40, 40), (80 * number, 0, 0)).save(Path("photos", name, f"{number}.png"))
    Path("photos", "one", "broken.png").write_bytes(b"nothing")
    words = (
        "train",
        *BACKBONE,
        "--data",
        "folder:photos",
        "--steps",
        "1",
        "--batch-size",
        "2",
        "--out",
        "new.safetensors",
    )
    found = run(*words)
    assert found.code == 1
    assert "--on-bad-image skip" in found.error
    assert run(*words, "--on-bad-image", "skip").code == 0
