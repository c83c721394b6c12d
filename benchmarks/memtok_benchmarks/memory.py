"""Peak memory of one contender, in a process of its own.

On a CPU it is the most that the process ever held (the kernel's high-water mark, set back once the model is there)
minus what it held after the imports and before the model: the interpreter and its libraries, several hundred
megabytes in every contender, would bring the ratios nearer to one. On a GPU it is torch's own count. The peak of
tensors alone, from torch's profiler, is reported as well.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import resource
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from memtok.errors import MemtokError
from memtok_benchmarks.sizes import Sizes

STEPS = 3  # the first makes the optimizer's state and fills caches, the others show the steady state
MARK = "MEMORY "
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Peak:
    """In bytes. process: above the process before the model (None on a GPU). tensors: torch's count.

    reset: whether the high-water mark was set back, so that building the model does not count.
    """

    process: int | None
    tensors: int
    reset: bool

    @property
    def bytes(self) -> int:
        """The figure of the table."""
        return self.tensors if self.process is None else self.process

    def to_json(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def measure(name: str, sizes: Sizes) -> Peak:
    """The peak of contender `name` (see `contenders.ALL`), in a fresh process; MemtokError if that fails."""
    command = [sys.executable, "-m", "memtok_benchmarks.memory"]
    asked = json.dumps({"name": name, "sizes": sizes.to_json()})
    result = subprocess.run(command, input=asked, capture_output=True, text=True)
    found = [line for line in result.stdout.splitlines() if line.startswith(MARK)]
    if result.returncode != 0 or not found:
        said = (result.stderr.strip().splitlines() or ["nothing"])[-1][:200]
        raise MemtokError(
            f"expected the peak memory of {name}, found that its process failed: {said}; lower --batch-size"
        )
    return Peak(**json.loads(found[-1].removeprefix(MARK)))


def peak_here(name: str, sizes: Sizes) -> Peak:
    """The same in this process, which does nothing else."""
    import torch

    from memtok_benchmarks.contenders import ALL
    from memtok_benchmarks.scene import Scene

    contender = ALL[name]
    for package in contender.needs:
        bring(package)
    with Scene(sizes) as scene:
        wake(scene.device)
        before = resident("VmRSS")
        run = contender.make(scene)
        scene.give_up_backbone()
        trim()
        reset = reset_peak(scene.device)
        for _ in range(STEPS):
            run()
        scene.synchronize()
        if scene.device.type == "cuda":
            return Peak(None, int(torch.cuda.max_memory_allocated(scene.device)), reset)
        peak = resident("VmHWM")
        return Peak(peak - before, tensor_peak(run), reset)


def bring(package: str) -> None:
    """Imports what a contender needs, before anything is counted."""
    if package == "transformers":
        _ = importlib.import_module(package).ViTForImageClassification  # it imports its parts on access
    else:
        importlib.import_module({"vit-pytorch": "vit_pytorch.learnable_memory_vit"}.get(package, package))


def wake(device: Any) -> None:
    """Starts the threads and libraries of torch, which every contender needs, with a small amount of work."""
    import torch

    layer = torch.nn.Linear(64, 64, device=device)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(8, 64, device=device)).sum().backward()
    optimizer.step()
    torch.nn.functional.conv2d(torch.ones(1, 3, 8, 8, device=device), torch.ones(4, 3, 4, 4, device=device))
    del layer, optimizer
    gc.collect()


def resident(field: str) -> int:
    """Bytes of this process now (`VmRSS`) or at most (`VmHWM`), from the kernel; elsewhere at most, from getrusage."""
    if STATUS.exists():
        (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:")]
        return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def trim() -> None:
    """Returns freed memory to the system, if the C library supports it."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def reset_peak(device: Any) -> bool:
    """Sets the high-water mark to what is held now; False where that cannot be done."""
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        CLEAR.write_text("5")
    except OSError:
        return False
    return True


def tensor_peak(run: Any) -> int:
    """The peak of bytes in tensors during `run`: those that exist, and those that torch's profiler sees allocated."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    gc.collect()
    storages: dict[int, int] = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor) and type(thing).__name__ != "FakeTensor" and thing.device.type == "cpu":
            for tensor in (thing, thing.grad if thing.is_leaf else None):
                if tensor is not None:
                    storage = tensor.untyped_storage()
                    storages[storage.data_ptr()] = storage.nbytes()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        run()
    with tempfile.TemporaryDirectory(prefix="memtok-") as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = [event for event in json.loads(trace.read_bytes())["traceEvents"] if event.get("name") == "[memory]"]
    held = most = sum(storages.values())
    for event in sorted(events, key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]  # below 0 where memory was given back
        most = max(most, held)
    return most


if __name__ == "__main__":
    question = json.loads(sys.stdin.read())
    print(MARK + json.dumps(peak_here(question["name"], Sizes(**question["sizes"])).to_json()))
