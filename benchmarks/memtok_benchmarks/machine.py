"""The machine of a run, without names of hosts, users or folders."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

from memtok import __version__
from memtok_benchmarks import peers
from memtok_benchmarks.sizes import TINY, Sizes, usable_cores
from memtok_benchmarks.timing import race

MATRIX = {"cpu": 2048, "cuda": 8192}  # side of the square matrices whose product gives the rate


def describe(sizes: Sizes) -> dict[str, Any]:
    """Processor, memory, system, versions, and the measured rate of matrix products."""
    device = torch.device(sizes.device)
    found: dict[str, Any] = {
        "processor": processor(),
        "cores": usable_cores(),
        "threads": sizes.threads,
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.release().split('-')[0]} {platform.machine()}",
        "python": platform.python_version(),
        "memtok": __version__,
        "torch": torch.__version__,
        "timm": metadata.version("timm"),
        "peers": peers.versions(),
        "blas": blas(),
        "device": sizes.device,
        "precision": sizes.precision,
    }
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
        found["gpu_memory_gb"] = round(torch.cuda.get_device_properties(device).total_memory / 1e9, 1)
        found["cuda"] = torch.version.cuda
    found["matrix_gflops"] = round(matrix_rate(sizes) / 1e9, 1)
    return found


def processor() -> str:
    """The model of the processor, as the system calls it."""
    listed = Path("/proc/cpuinfo")
    if listed.exists():
        for line in listed.read_text(errors="replace").splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def blas() -> str:
    """The library of matrix products, and the widest instructions that torch uses."""
    backends: Any = torch.backends
    library = "MKL" if backends.mkl.is_available() else "OpenBLAS or other"
    dnn = ", oneDNN" if backends.mkldnn.is_available() else ""
    return f"{library}{dnn}, {backends.cpu.get_cpu_capability()}"


def matrix_rate(sizes: Sizes) -> float:
    """Floating-point operations per second of one large square matrix product, in the precision of the run."""
    device = torch.device(sizes.device)
    side = 256 if sizes.model == TINY else MATRIX.get(device.type, 2048)
    dtype = torch.bfloat16 if sizes.precision == "bf16" else torch.float32
    torch.set_num_threads(sizes.threads)
    matrix = torch.ones(side, side, device=device, dtype=dtype)
    out = torch.empty_like(matrix)

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    with torch.inference_mode():
        timing = race({"product": lambda: torch.mm(matrix, matrix, out=out)}, warmup=2, synchronize=wait)["product"]
    return 2 * side**3 / timing.median
