"""Compiled training: the same tensors, few graphs and none after the first epoch, one line where it cannot be done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config
from torch import nn
from torch._dynamo import register_backend

from memtok.backbone import Backbone
from memtok.data import DataSource
from memtok.errors import MemtokError
from memtok.training import train_together
from memtok.training.compiler import check_inductor, make_compiler
from tests.training.helpers import Recorder, fingerprint, new_task, quick

# torch looks at the .grad of every tensor that it traces, and hides its own warning from all but strict filters.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor")

MOST_GRAPHS = 8  # of one run: trunk and streams, last layer and others, training and validation, one size and all

graphs: list[int] = []


@register_backend(name="memtok_counted")
def counted(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
    """Counts graphs and runs them as they are."""
    graphs.append(len(graph.graph.nodes))
    return graph.forward


@register_backend(name="memtok_broken")
def broken(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
    """Fails, in two lines."""
    raise RuntimeError("no room for code\nand more")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """No code and no count of other tests."""
    torch.compiler.reset()
    graphs.clear()
    yield
    torch.compiler.reset()


class Counting(Recorder):
    """Notes how many graphs there were at the end of every validation."""

    def validation(self, row: Any, best: bool) -> None:
        super().validation(row, best)
        self.calls.append(("graphs", len(graphs)))


def close(one: nn.Module, other: nn.Module, tolerance: float = 1e-5) -> None:
    """Fails unless both have the same tensors to rounding."""
    for (name, left), right in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance, msg=lambda t, n=name: f"{n}: {t}")


@pytest.mark.twice
@pytest.mark.parametrize(
    ("regime", "more"),
    [
        pytest.param("memory", {}, marks=pytest.mark.slow),
        pytest.param("memory", {"accumulate": 3}, marks=pytest.mark.slow),
        ("memory", {"keep_traces": "ram"}),
        ("head", {}),
        ("head", {"keep_traces": "ram"}),
        ("memory-shared", {}),
        pytest.param("full", {}, marks=pytest.mark.slow),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value)) or "plain",
)
def test_the_same_tensors_and_nothing_compiled_after_the_first_epoch(
    backbone: Backbone, data: DataSource, regime: str, more: dict[str, Any]
) -> None:
    before = fingerprint(backbone)
    per_epoch = 3
    common = {"batch_size": 100, "steps": 3 * per_epoch, "validate_every": per_epoch} | more
    assert per_epoch == -(-len(data.train) // common["batch_size"])
    assert len(data.train) % common["batch_size"]  # the last batch of an epoch is smaller
    plain, compiled = (new_task(backbone, data, regime) for _ in range(2))
    quick(plain, data, **common)
    assert not graphs
    recorder = Counting()
    found = quick(compiled, data, compile="memtok_counted", progress=recorder, **common)
    first, *later = recorder.said("graphs")
    # The trunk that fills and the streams that train, for the first size and for all, and the streams that look.
    assert 0 < first <= (5 if "keep_traces" in more else MOST_GRAPHS)
    assert later == [first, first]
    close(compiled, plain)
    assert "compile" not in found.record["hyperparameters"]
    assert fingerprint(backbone) == before


@pytest.mark.slow
def test_bf16(backbone: Backbone, data: DataSource) -> None:
    plain, compiled = (new_task(backbone, data) for _ in range(2))
    quick(plain, data, precision="bf16")
    quick(compiled, data, precision="bf16", compile="aot_eager")
    close(compiled, plain, tolerance=1e-2)


@pytest.mark.twice
def test_tasks_together(backbone: Backbone, data: DataSource) -> None:
    shared: dict[str, Any] = {"steps": 6, "batch_size": 100, "device": "cpu", "workers": 0, "augment": "none"}
    shapes: list[dict[str, Any]] = [{"memory": 3}, {"memory": 2, "adapter_rank": 2}, {"regime": "head"}]
    plain, compiled = ([new_task(backbone, data, name=f"t{n}", **m) for n, m in enumerate(shapes)] for _ in range(2))
    train_together(plain, data, **shared)
    assert not graphs
    train_together(compiled, data, compile="memtok_counted", **shared)
    assert 0 < len(graphs) <= MOST_GRAPHS
    for one, other in zip(compiled, plain, strict=True):
        close(one, other)


@pytest.mark.twice
def test_a_run_goes_on_compiled(backbone: Backbone, data: DataSource, out: Path) -> None:
    whole, stopped, resumed = (new_task(backbone, data, "head") for _ in range(3))
    quick(whole, data)
    with pytest.raises(KeyboardInterrupt):
        quick(stopped, data, out=out, save_every=1, progress=Recorder(stop=6))
    quick(resumed, data, out=out, resume=True, compile="memtok_counted")
    assert graphs
    close(resumed, whole)


def named(name: str, images: torch.Tensor) -> torch.Tensor:
    """Something of which torch makes a version for every name."""
    return images * len(name)


def test_runs_do_not_take_versions_from_each_other() -> None:
    """Torch keeps 8 versions of a function; the last run compiles as the first does."""
    for number in range(12):
        compiler = make_compiler("memtok_counted", torch.device("cpu"))
        assert compiler
        run = compiler.function(named, "a" * number)
        assert run(torch.ones(2, 3)).sum() == 6 * number
    assert len(graphs) == 12


@pytest.mark.parametrize("choice", ["no such backend", 1, None])
def test_what_is_no_choice(backbone: Backbone, data: DataSource, choice: Any) -> None:
    with pytest.raises(MemtokError, match="expected compile as True, False or a backend"):
        quick(new_task(backbone, data), data, compile=choice)


def test_no_compiler(backbone: Backbone, data: DataSource, out: Path) -> None:
    check_inductor.cache_clear()
    missing = torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)})
    with missing, pytest.raises(MemtokError) as caught:
        quick(new_task(backbone, data), data, compile=True, out=out)
    assert str(caught.value) == (
        "expected a working C++ compiler for compile, found none; install one (g++, for example), or leave compile out"
    )
    assert not out.with_suffix(".run").exists()


@pytest.mark.parametrize("regime", ["memory", "full"])
def test_a_compiler_that_fails(backbone: Backbone, data: DataSource, regime: str) -> None:
    task = new_task(backbone, data, regime)
    before = fingerprint(task)
    with pytest.raises(MemtokError) as caught:
        quick(task, data, compile="memtok_broken")
    assert str(caught.value) == (
        "expected a training step that torch.compile (memtok_broken) can compile, found RuntimeError: no room for "
        "code; leave compile out"
    )
    assert fingerprint(task) == before


def undefined(images: torch.Tensor) -> torch.Tensor:
    """Fails by itself, whoever compiles it."""
    return images * (1 / 0)


@pytest.mark.parametrize("backend", ["memtok_counted", "memtok_broken"])
def test_other_errors_stay_as_they_are(backend: str) -> None:
    compiler = make_compiler(backend, torch.device("cpu"))
    assert compiler
    with pytest.raises(ZeroDivisionError):
        compiler.function(undefined)(torch.ones(2, 3))


@pytest.mark.slow
def test_inductor(backbone: Backbone, data: DataSource) -> None:
    try:
        check_inductor(torch.device("cpu"))
    except MemtokError as error:
        pytest.skip(str(error))
    plain, compiled = (new_task(backbone, data) for _ in range(2))
    quick(plain, data, steps=3, validate_every=3)
    quick(compiled, data, steps=3, validate_every=3, compile=True)
    close(compiled, plain)
