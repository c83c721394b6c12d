"""What a caller may have set in torch around a call, and how memtok's own work stays as it is under it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch


@contextmanager
def plain_torch() -> Iterator[None]:
    """Inside, new tensors are on the CPU and can train, and gradients are on, whatever the caller has set.

    That is `torch.inference_mode`, `torch.no_grad`, `torch.set_default_device` and `with torch.device(...)`, each in
    this thread only. The default dtype belongs to the whole process: who makes numbers names theirs.
    """
    elsewhere = torch.get_default_device().type != "cpu"
    with torch.inference_mode(False), torch.enable_grad(), torch.device("cpu") if elsewhere else nullcontext():
        yield
