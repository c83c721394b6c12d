"""`memtok sweep`: what it prints and writes, that it goes on where it stopped, and its errors."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from memtok.cli import sweep
from memtok.parts import OPTIONS
from memtok.sweeps import Range
from tests.cli.conftest import Run

QUICK = (
    *("--backbone", "tiny.safetensors", "--steps", "2", "--batch-size", "8", "--augment", "none", "--device", "cpu"),
    *("--data", "folder:photos"),
)


@pytest.fixture(autouse=True)
def _here(workspace: Path) -> None:
    """Every test is in a folder with a backbone and pictures."""


def test_a_grid(workspace: Path, run: Run) -> None:
    words = ("--learning-rates", "0.01", "0.1", "--memory", "0", "2", "--seeds", "0", "1", "--split", "80-20")
    columns = "place regime cells rate seed validation % 95 % interval mean of seeds from the highest loss trained"
    found = run("sweep", *QUICK, *words, "--out", "out", "--json", "result.json")
    assert found.code == 0, found.err
    assert "12 configurations in 1 pass over the trunk" in found.err  # four of them heads
    lines = found.out.splitlines()
    assert " ".join(lines[0].split()) == f"{columns} steps state"
    assert [line.split()[0] for line in lines[1:13]] == [str(place) for place in range(1, 13)]
    assert "cannot be told apart from it" in found.out
    assert "a head alone has" in found.out
    assert "on the test part, looked at once" in found.out
    result = json.loads(Path("result.json").read_text())
    assert result == json.loads(Path("out/result.json").read_text())
    (found_on,) = result["data"]
    (winner,) = [each for each in found_on["configurations"] if each["name"] == found_on["winner"]]
    balanced = f"{100 * winner['looks'][-1]['balanced']:.2f} %"
    assert f"(mean recall of the classes) on the validation images is {balanced}" in found.out
    for name in ("result.csv", "result.md", "sweep.png", "best.safetensors"):
        assert f"wrote out/{name}" in found.out
        assert (workspace / "out" / name).stat().st_size > 100
    again = run("sweep", *QUICK, *words, "--out", "out")
    assert again.out == found.out
    assert "all configurations are done" in again.err
    for command in [line.strip() for line in found.out.splitlines() if line.startswith("  memtok ")]:
        typed = shlex.split(command.replace("PATH", "photos"))[1:]
        assert run(*typed).code == 0, command


def test_a_search_over_several_data_sets(workspace: Path, run: Run) -> None:
    (workspace / "photos").rename(workspace / "one")
    import shutil

    shutil.copytree(workspace / "one", workspace / "two")
    words = ("--learning-rates", "1e-3..1e-1", "--memory", "0..3", "--search", "random", "--trials", "22")
    data = ("--data", "folder:one", "folder:two", "--halving", "3")
    found = run("sweep", *QUICK[:-2], *data, *words, "--out", "out")
    assert found.code == 0, found.err
    assert "folder:two: the best 20 of 25 configurations; all are in out/result.md" in found.out  # 3 are heads
    names = [path.name for path in sorted((workspace / "out").glob("best-*"))]
    assert len(names) == 2
    assert f"memtok verify out/{names[0]} out/{names[1]}" in found.out
    assert "early stopping" not in found.err  # two steps are all warm-up


def test_traces_are_kept_for_all_passes_and_for_later_runs(workspace: Path, run: Run) -> None:
    traces = ("--keep-traces", "disk", "--trace-dir", "traces", "--trace-limit", "0.1")
    words = ("--learning-rates", "0.01", "0.1", "--together", "1", "--split", "80-20", "--no-compare-head")
    found = run("sweep", *QUICK, *words, *traces, "--out", "out")
    assert found.code == 0, found.err
    assert found.err.count("keeping traces (traces)") == 1
    assert "2 configurations in 2 passes" in found.err
    assert (workspace / "traces" / "manifest.json").exists()
    alone = run("train", *QUICK, *traces, "--regime", "memory", "--split", "80-20", "--out", "alone.safetensors")
    assert alone.code == 0, alone.err
    assert "; 0 were there before" not in alone.out
    assert "were there before" in alone.out


def test_all_diverge(run: Run) -> None:
    found = run("sweep", *QUICK, "--learning-rates", "1e38", "--recipe", "paper", "--steps", "6", "--out", "out")
    assert found.code == 1
    assert "no winner, for all configurations diverged" in found.out
    assert "next:" not in found.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--learning-rates", "0"),
            "expected --learning-rates as a number above 0 (at most 3e+38), or a range LOW..HIGH",
        ),
        (("--learning-rates", "x"), "expected --learning-rates as a number above 0"),
        (("--learning-rates", "nan"), "expected --learning-rates as a number above 0"),
        (("--learning-rates", "1e300"), "(at most 3e+38)"),
        (
            ("--learning-rates", "1e-1..1e-4"),
            "or a range LOW..HIGH above 0 with the lower end first, such as 1e-4..1e-1",
        ),
        (("--learning-rates", "0..1e-4", "--search", "random", "--trials", "2"), "a range LOW..HIGH above 0"),
        (("--weight-decays", "-1"), "expected --weight-decays as a number of 0 or more"),
        (("--learning-rates", "0.1", "0.10000001"), "expected --learning-rates, each once (in six digits), found 0.1"),
        (("--queries", "0"), "expected --queries as a whole number of 1 or more"),
        (("--memory", "99999999999999999999"), "expected --memory below 2**63"),
        (("--keep-traces", "ram", "--trace-limit", "inf"), "expected --trace-limit as a finite number above 0"),
        (("--learning-rates", "1e-4..1e-1"), "expected lists for a grid, found the range 0.0001..0.1"),
        (("--learning-rates", "0.1", "1e-4..1e-1"), "expected values or one range after --learning-rates"),
        (("--memory", "-1"), "expected --memory as a whole number"),
        (("--memory", "5", "5"), "expected --memory, each once, found 5, 5"),
        (("--regimes", "full"), "expected --regimes as one of memory, head"),
        (("--search", "random"), "expected --trials for the search 'random'"),
        (("--trials", "3"), "expected no --trials for a grid"),
        (("--halving", "1"), "expected --halving as a whole number of 2 or more"),
        (("--steps", "3", "--epochs", "1"), "expected --steps or --epochs"),
        (("--data", "nothing"), "expected a data set"),
        (("--data", "folder:photos"), "expected every --data once"),
        (("--json", "out/sweep.json"), "which the sweep keeps"),
        (("--json", "out"), "expected a file after --json, found out, a folder of --out"),
        (("--out", "tiny.safetensors"), "expected a folder after --out"),
        (("--keep-traces", "tape"), "expected --keep-traces as one of ram, disk, gpu"),
        (("--keep-traces", "gpu"), "expected a GPU to keep traces on"),
        (("--views", "2"), "expected --views where traces are kept"),
        (("--keep-traces", "disk", "--trace-dir", "photos/x"), "expected --trace-dir outside the folder of images"),
        (("--out", "photos"), "expected --out outside the folder of images, found photos in it"),
        (("--out", "photos/deep/out"), "expected --out outside the folder of images"),
        (("--keep-traces", "disk", "--trace-dir", "out/runs/x"), "expected --trace-dir outside out/runs"),
    ],
)
def test_wrong_arguments(run: Run, words: tuple[str, ...], message: str) -> None:
    out = () if words[0] == "--out" else ("--out", "out")
    found = run("sweep", *QUICK, *out, *words)
    assert found.code == 2, found.err
    assert message in found.error
    assert not Path("out").exists()


def test_images_that_cannot_be_read_are_named_and_counted(workspace: Path, run: Run) -> None:
    bad = workspace / "photos" / "class 1" / "bad.png"
    bad.write_bytes(b"no picture")
    found = run("sweep", *QUICK, "--learning-rates", "0.01", "--on-bad-image", "skip", "--out", "out")
    assert found.code == 0, found.err
    assert f"memtok: note: not readable, left out: {bad.relative_to(workspace)}" in found.err
    said = "folder:photos: 1 image could not be read and was left out"
    assert said in found.out
    assert said in Path("out/result.md").read_text()
    assert json.loads(Path("out/result.json").read_text())["data"][0]["skipped_images"] == 1


def test_work_that_cannot_be_done(run: Run) -> None:
    found = run("sweep", *QUICK, "--out", "out", "--memory-limit", "1e-6")
    assert found.code == 1
    assert "expected" in found.error
    assert "raise the limit, or lower the batch size" in found.error
    assert not Path("out").exists()


def test_other_settings_in_the_same_folder(run: Run) -> None:
    first = ("--learning-rates", "0.01", "0.02", "--no-compare-head", "--out", "out")
    assert run("sweep", *QUICK, *first, "--halving", "2").code == 0
    for words, expected in (
        ((), "in out, --halving 2, found none; use the same, or another --out"),
        (("--halving", "2", "--memory", "1"), "in out, --memory [5], found [1]; use the same, or another --out"),
    ):
        found = run("sweep", *QUICK, *first, *words)
        assert found.code == 1
        assert expected in found.error


def test_an_interrupted_sweep_says_how_it_goes_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("memtok.runs.train_together", interrupt)
    found = run("sweep", *QUICK, "--out", "out")
    assert found.code == 130
    assert found.err.splitlines()[-1].endswith("interrupted, what was written stays; the same command goes on")


def test_lists_and_ranges() -> None:
    assert sweep.numbers("--x", above_zero=True).convert("1e-4..1e-1") == Range(1e-4, 1e-1)
    assert sweep.numbers("--x", above_zero=False).convert("0") == 0
    (memory,) = (option for option in OPTIONS if option.name == "memory")
    assert sweep.counts("--x", memory).convert("0..20") == Range(0, 20)
