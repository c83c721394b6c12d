"""Several processes share each batch and end with the same parameters as one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from memtok.backbone import Backbone
from memtok.data import DataSource
from memtok.training.state import read_run
from tests.training.helpers import new_task, quick

CHILD = """
import sys, torch
from pathlib import Path
from memtok.data import open_data
from memtok.training.trainer import Trainer
from tests.tiny import tiny_backbone
from tests.training.helpers import new_task, quick
rank, rows = int(sys.argv[2]), 0
honest = Trainer.parts

def counted(self, images, labels):
    global rows
    for part, answers, weight in honest(self, images, labels):
        rows += len(part) * int(weight)
        yield part, answers, weight

Trainer.parts = counted
torch.manual_seed(0)
backbone, data = tiny_backbone(), open_data("digits").only(["0", "1"])
# The initial values of the first process count. Of 259 images in batches of 43 the seventh batch holds one.
result = quick(new_task(backbone, data, seed=rank), data, out=Path(sys.argv[1]), steps=10, batch_size=43, accumulate=2)
print(result.best_step, result.best_accuracy, rows, result.best_balanced, *result.score.confusion().flatten())
# Another run in these processes may have another precision.
assert quick(new_task(backbone, data), data, steps=2, batch_size=43, precision="bf16").steps == 2
torch.distributed.destroy_process_group()
"""


def train_in_two_processes(root: Path, out: Path) -> list[str]:
    """What each of the two prints; one that fails does not leave the other behind."""
    with ExitStack() as stack:
        # Held until the end, so that nobody else is given the port; it does not listen, so the first process can.
        held = stack.enter_context(socket.socket())
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(held.getsockname()[1]), "OMP_NUM_THREADS": "1"}
        children = []
        for rank in ("0", "1"):
            shared = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
            child = subprocess.Popen(
                [sys.executable, "-c", CHILD, str(out), rank],
                cwd=root,
                env={**os.environ, **shared, **place},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(child)
            stack.callback(child.kill)
            children.append(child)
        answers = [child.communicate() for child in children]
    assert [child.returncode for child in children] == [0, 0], answers
    return [answer for answer, _ in answers]


@pytest.mark.twice
@pytest.mark.slow
def test_two_processes_are_one_up_to_rounding(root: Path, backbone: Backbone, data: DataSource, tmp_path: Path) -> None:
    together, alone = tmp_path / "together.safetensors", tmp_path / "alone.safetensors"
    told = [answer.split() for answer in train_in_two_processes(root, together)]
    one = quick(new_task(backbone, data), data, out=alone, steps=10, batch_size=43, accumulate=2)
    assert told[0][:2] == told[1][:2]
    assert told[0][3:] == told[1][3:]  # each process knows what all of them answered
    assert one.score is not None
    assert float(told[0][3]) == pytest.approx(one.score.balanced, abs=0.05)
    counts = torch.tensor([int(number) for number in told[0][4:]]).view(2, 2)
    assert counts.sum(dim=1).tolist() == one.score.confusion().sum(axis=1).tolist()
    assert float(told[0][1]) == counts.diagonal().sum() / counts.sum()
    assert int(told[0][2]) + int(told[1][2]) == one.record["images_seen"]
    assert 0 <= int(told[0][2]) - int(told[1][2]) <= 10
    expected = load_file(alone)
    for name, value in load_file(together).items():
        assert (value - expected[name]).abs().max() < 2e-3, name
    run = read_run(together.with_suffix(".run") / "state.safetensors")
    assert run
    lines = [(row["step"], row["loss"]) for row in run.tasks[0].history if "loss" in row]
    assert lines == [(row["step"], pytest.approx(row["loss"], rel=1e-3)) for row in one.history if "loss" in row]
