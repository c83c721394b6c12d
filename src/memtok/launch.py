"""What a launcher of several processes (`accelerate launch`, `torchrun`) puts into the environment, checked.

What is left there of an earlier launch would make a run wait for processes that never come, or take itself for one of
several that is not the first.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from memtok.errors import MemtokError

OWN = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
NEEDED = (*OWN, "MASTER_ADDR", "MASTER_PORT")
# An MPI launcher says the same in variables of its own, which accelerate reads.
MPI = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
MPI_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
ADVICE = "for one process `unset RANK LOCAL_RANK WORLD_SIZE`, for several start with `accelerate launch` or `torchrun`"


def check_launch(environment: Mapping[str, str] = os.environ) -> None:
    """MemtokError unless the environment is that of one process, or a launcher's: complete, without contradiction."""
    found = {name: environment[name] for name in OWN if name in environment}
    if not found or any(name in environment for name in MPI):
        return
    shown = ", ".join(f"{name}={value}" for name, value in found.items())
    if not all(value.isascii() and value.isdigit() for value in found.values()):
        raise MemtokError(f"expected whole numbers in {', '.join(found)} of the environment, found {shown}; {ADVICE}")
    rank, size = int(found.get("RANK", "0")), int(found.get("WORLD_SIZE", "1"))
    if "LOCAL_RANK" not in found and rank == 0 and size == 1:
        return  # the first and only one, whoever said so
    missing = [name for name in NEEDED if name not in environment]
    if missing:
        raise MemtokError(
            f"expected the environment of a launcher, found {shown} without {', '.join(missing)}; {ADVICE}"
        )
    if rank >= size:
        raise MemtokError(f"expected RANK below WORLD_SIZE in the environment, found {shown}; {ADVICE}")


def launched_processes(environment: Mapping[str, str] = os.environ) -> int:
    """How many processes a launcher started, of an environment that `check_launch` found right."""
    return int(environment.get("WORLD_SIZE", "1"))


def mpi_processes(environment: Mapping[str, str] = os.environ) -> int:
    """How many processes an MPI launcher started."""
    return max(int(environment.get(name, "1")) for name in MPI_SIZES)


def launched_on_cpu(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether `accelerate launch --cpu` started this process."""
    return environment.get("ACCELERATE_USE_CPU", "").lower() == "true"


def is_first_process(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this is the process that speaks for all."""
    return all(environment.get(name, "0") == "0" for name in ("RANK", *MPI))
