"""Rows that do more than time a step: `traces` and `folder` run a training, `compile` counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from memtok.backbone import Backbone
from memtok.data import DataSource, open_data
from memtok.errors import MemtokError
from memtok.training import feed
from memtok_benchmarks import contenders, floor, peers
from memtok_benchmarks.photographs import write_photographs
from memtok_benchmarks.report import cells
from memtok_benchmarks.rows import exported, folder, loading, readouts, recompilations, traces
from memtok_benchmarks.runs import runner
from memtok_benchmarks.scene import Scene
from memtok_benchmarks.sizes import Sizes, quick_sizes
from memtok_benchmarks.timing import Run, Timing

QUICK = quick_sizes(threads=1, batch=2)


@pytest.fixture
def scene() -> Iterator[Scene]:
    threads = torch.get_num_threads()
    with Scene(QUICK) as scene:
        yield scene
    torch.set_num_threads(threads)


@pytest.fixture
def source(tmp_path: Path) -> DataSource:
    write_photographs(tmp_path / "photographs", 8, seed=0)
    return open_data(f"folder:{tmp_path / 'photographs'}", data_dir=tmp_path / "data")


def test_a_line_per_batch_size_and_a_time_per_step(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run is a whole epoch, live as well as kept; the steps are told from the calls of the optimizer."""
    steps: list[dict[str, int]] = []

    def race(runs: Mapping[str, Run], **more: Any) -> dict[str, Timing]:
        found = {}
        steps.append({})
        for name, run in runs.items():
            calls.clear()
            run()
            steps[-1][name] = len(calls)
            found[name] = Timing((float(len(calls)),) * 5)  # a second a step
        return found

    calls: list[int] = []
    original = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *args, **more: (calls.append(1), original(*args, **more)))
    monkeypatch.setattr(traces, "race", race)
    result = traces.traces(scene)
    assert [line.memtok.value for line in result.lines] == [1.0, 1.0, 1.0]
    assert [(each["live"], each["kept"]) for each in steps] == [(8, 8), (4, 4), (2, 2)]  # 16 images
    assert [f"batch {batch}," in line.what for batch, line in zip((2, 4, 8), result.lines, strict=True)] == [True] * 3
    assert set(result.data["4"]["timings"]) == {"live", "kept", "live, no decoding", "kept, no reading"}
    assert set(result.data["8"]["timings"]) == {"live", "kept"}
    assert result.data["record_bytes"] == 2304
    assert 0 < result.data["4"]["floor"] < 1
    assert all(cells(line)[-3:] == ("-", "-", "-") for line in result.lines)  # the sizes are not those of the bounds


def test_an_epoch_from_traces_decodes_nothing_and_runs_no_trunk(
    scene: Scene, source: DataSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    decoded: list[int] = []
    whole, read = Backbone.trace, type(source.train.store).read

    def trace(backbone: Backbone, images: torch.Tensor, **more: Any) -> Any:
        computed.append(len(images))
        return whole(backbone, images, **more)

    def reading(store: Any, position: int) -> Image.Image:
        decoded.append(position)
        return read(store, position)

    monkeypatch.setattr(Backbone, "trace", trace)
    monkeypatch.setattr(type(source.train.store), "read", reading)
    assert traces.fill(scene, source, tmp_path / "traces") == 2304
    assert (sum(computed), len(decoded)) == (12, 12)  # those of the validation as well
    kept, live = (runner(scene, source, 4, folder) for folder in (tmp_path / "traces", None))
    parameters = [each for run in (kept, live) for each in run.trainer.tasks[0].parameters()]
    with closing(kept.feed), closing(live.feed):
        assert sum(computed) == 12
        from_traces, from_files = kept.epochs(), live.epochs()
        for run, images in ((from_traces, 0), (from_traces, 0), (from_files, 8), (from_files, 8)):
            before = [parameter.detach().clone() for parameter in parameters]
            computed.clear()
            decoded.clear()
            run()
            assert (sum(computed), len(decoded)) == (images, images)
            assert any(not torch.equal(one, other) for one, other in zip(before, parameters, strict=True))


def test_the_bounds_are_those_of_one_line() -> None:
    timings = {"live": Timing((1.0,) * 5), "kept": Timing((0.1,) * 5)}
    shown = [cells(traces.line_of(Sizes(), factor, timings)) for factor in traces.FACTORS]
    assert [line[-3:] for line in shown] == [("-", "-", "-"), ("≤ 1 / 8", "≤ 1 / 12", "must"), ("-", "-", "-")]
    assert "batch 64," in shown[1][0]
    assert shown[1][1] == "0.100"


def test_too_little_room_for_all_traces_is_an_error(
    scene: Scene, source: DataSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "default_limit", lambda *arguments: 5 * 2304)
    with pytest.raises(MemtokError, match=r"18\.4 kB"):
        traces.fill(scene, source, tmp_path / "traces")


def test_photographs_compress_like_photographs(tmp_path: Path) -> None:
    """Half a megabyte of pixels in 50 to 150 kB, as JPEG of this size and quality mostly has; the same for a seed."""
    size = write_photographs(tmp_path / "one", 2, seed=3)
    assert 50_000 < size < 150_000
    write_photographs(tmp_path / "other", 2, seed=3)
    first, second = (tmp_path / name / "train" / "class 1" / "00001.jpg" for name in ("one", "other"))
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes() != (tmp_path / "one" / "train" / "class 0" / "00000.jpg").read_bytes()


# torch looks at the .grad of every tensor that it traces, and hides its own warning from all but strict filters.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor")
@pytest.mark.slow
def test_swaps_of_the_same_shape_compile_nothing(scene: Scene) -> None:
    kept = torch._dynamo.config.get_config_copy()
    result = recompilations.recompilations(scene)
    (line,) = result.lines
    assert cells(line)[-3:] == ("≤ 0", "-", "must")
    assert line.memtok.value == 0
    assert result.data["memtok"]["first"] > 0
    assert result.data["dense"]["first"] > 0
    assert torch._dynamo.config.get_config_copy() == kept


def test_what_has_to_be_compiled_again_is_counted(scene: Scene) -> None:
    """The count would not stand still if there were something to count."""

    def models(scene: Scene, counter: recompilations.Counter) -> Iterator[recompilations.Answer]:
        for width in widths:
            yield torch.compile(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, width)), backend=counter)

    widths = [2, 2]
    first, swapped = recompilations.swaps(scene, models)
    assert (first, swapped) == (2, 0)  # without a gradient and with one
    widths = [2, 3]
    assert recompilations.swaps(scene, models)[1] > 0


def test_loading_is_timed_beside_the_steps_that_it_feeds(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs count as their steps; loading trains nothing, and the layouts answer alike."""
    seconds = {"epoch": 12.0, "loading": 4.0, "step": 1.0, "channels-first": 1.0, "channels-last": 2.0}
    trained: dict[str, int] = {}
    calls: list[int] = []
    answers: list[torch.Tensor] = []
    original = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *args, **more: (calls.append(1), original(*args, **more)))

    def race(runs: Mapping[str, Run], **more: Any) -> dict[str, Timing]:
        for name, run in runs.items():
            calls.clear()
            answer = run()
            trained[name] = len(calls)
            if isinstance(answer, torch.Tensor):
                answers.append(answer)
        return {name: Timing((seconds[name],) * 5) for name in runs}

    monkeypatch.setattr(loading, "race", race)
    result = loading.loading(scene)
    assert [line.memtok.value for line in result.lines] == [1.5, 2.0, 2.0]
    assert {name: trained[name] for name in ("epoch", "loading", "step")} == {"epoch": 8, "loading": 0, "step": 1}
    torch.testing.assert_close(answers[-1], answers[-2], rtol=1e-5, atol=1e-5)
    assert "the process that trains decodes 4 images a second, training steps take 2;" in result.notes[0]


def test_readouts_are_answered_at_once_as_one_by_one(scene: Scene) -> None:
    tasks = readouts.make(scene, readouts.FORMS[0], 3)
    for task in tasks:
        nn.init.normal_(task.readout["weight"], generator=torch.Generator().manual_seed(0))
    together, alone = contenders.serving(scene, tasks)(), readouts.one_by_one(scene, tasks)()
    assert isinstance(together, dict)
    assert isinstance(alone, list)
    for one, other in zip(together.values(), alone, strict=True):
        assert one.shape == (QUICK.batch, QUICK.classes)
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    result = readouts.readouts(scene)
    assert [line.what.split(",")[1:3] for line in result.lines] == [
        [f" {count} tasks of 4 classes", f" {form.label}"] for form in readouts.FORMS for count in QUICK.readers
    ]
    # 3 levels of a class token, a deviation and 4 regions, and the head: 19 vectors of 32 numbers, times 4 classes.
    trunk = floor.trunk(floor.Geometry.of(scene.backbone.vit))
    assert result.data["readout of all levels, 3"]["floor"] == pytest.approx(1 + 3 * 19 * 32 * 4 / trunk)
    assert [form.must for form in readouts.FORMS] == [{100: 1.4, 1000: 4.0}] * 2


def test_a_kept_step_of_a_readout_is_the_live_one_without_the_trunk(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    live, kept = contenders.reading_step(scene), contenders.kept_reading_step(scene)
    losses = [torch.as_tensor(live()) for _ in range(3)]
    monkeypatch.setattr(Backbone, "trace", None)
    for loss in losses:
        torch.testing.assert_close(torch.as_tensor(kept()), loss, atol=1e-2, rtol=1e-2)
    assert not torch.equal(losses[0], losses[2])


def test_a_folder_becomes_a_task_over_the_pass_over_its_views(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on by one whenever it is read: a pass takes a second."""
    fitted: list[tuple[int, ...]] = []
    now = iter(range(10_000))
    monkeypatch.setattr(peers, "installed", lambda name: True)
    monkeypatch.setattr(folder, "fit", lambda features, labels: fitted.append((*features.shape, *labels.shape)))
    result = folder.folder(scene, clock=lambda: float(next(now)))
    (line,), data = result.lines, result.data["folder"]
    assert data["images"] == 4 * 32 + 8  # four views of 32, and 8 for validation, as memtok splits 40
    assert "40 photographs" in line.what
    assert "4 steps, 4 views" in line.what
    assert data["trunk"]["seconds"] == [1.0] * 10
    assert line.memtok.value == data["seconds"] / (136 / 64)
    assert sum(data["stages"].values()) == data["seconds"]
    assert list(data["stages"]) == ["opening", "caching", "measuring", "training", "ending"]
    assert fitted == [(32, 32, 32)]
    assert [peer.value for peer in line.peers] == [2.0 / (136 / 64)]
    assert line.must is None
    gap = folder.peer(None, 1.0)
    assert (gap.value, gap.note) == (None, "not installed: scikit-learn")


def test_the_probe_of_scikit_learn_learns() -> None:
    pytest.importorskip("sklearn")
    features = np.random.default_rng(0).normal(size=(40, 5))
    labels = (features[:, 0] > 0).astype(int)
    assert folder.fit(features, labels).score(features, labels) > 0.9


@pytest.mark.slow
def test_exported_files_answer_beside_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two weights of a file instead of three, one batch, nothing compiled: each contender gives the same numbers."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    kept = {name: exported.CONTENDERS[name] for name in ("eager", "float32", "float16")}
    monkeypatch.setattr(exported, "CONTENDERS", kept)
    sizes = replace(QUICK, batch=1)
    with Scene(sizes) as scene:
        result = exported.exported(scene)
    [line] = result.lines
    assert [line.memtok.label, *(peer.label for peer in line.peers)] == [label for label, _ in kept.values()]
    assert all(entry.value is not None and entry.value > 0 for entry in (line.memtok, *line.peers))
    assert set(result.data["1"]["timings"]) == {"trunk", *kept}


@pytest.mark.slow
def test_what_is_exported_is_what_is_compared(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    with Scene(replace(QUICK, batch=2)) as scene:
        expected: Any = exported.eager(scene, 2, tmp_path)()
        found: Any = exported.onnx(scene, 2, tmp_path, "float32")()
    for name, logits in expected.items():
        assert torch.allclose(logits, torch.from_numpy(found[name]), atol=1e-4)
