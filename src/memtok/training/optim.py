"""The optimizer of a run, and its state under the names of the parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from memtok.errors import MemtokError
from memtok.training.regimes import Trainable, without_decay
from memtok.training.settings import Plan


def make_optimizer(trainable: Trainable, plan: Plan) -> torch.optim.Optimizer:
    """SGD or AdamW over all parameters; those of `without_decay` do not decay. The loop sets the rate of each step."""
    spared = without_decay(trainable)
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in trainable.parameters() if parameter not in spared]},
        {
            "params": [parameter for parameter in trainable.parameters() if parameter in spared],
            "weight_decay": 0.0,
        },
    ]
    groups = [group for group in groups if group["params"]]
    if plan.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=plan.learning_rate, momentum=plan.momentum, weight_decay=plan.weight_decay)
    return torch.optim.AdamW(groups, lr=plan.learning_rate, betas=plan.betas, weight_decay=plan.weight_decay)


def optimizer_tensors(trainable: Trainable, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Every tensor that the optimizer keeps, as `KIND.PARAMETER`, such as `exp_avg.head.weight`."""
    return {
        f"{kind}.{name}": value
        for name, parameter in trainable.named_parameters()
        for kind, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(
    trainable: Trainable, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], where: str
) -> None:
    """Puts the result of `optimizer_tensors` back; MemtokError if it is not the state of this optimizer."""
    kinds = ("momentum_buffer",) if isinstance(optimizer, torch.optim.SGD) else ("step", "exp_avg", "exp_avg_sq")
    left = dict(tensors)
    for name, parameter in trainable.named_parameters():
        found = {kind: left.pop(key) for kind in kinds if (key := f"{kind}.{name}") in left}
        shapes = {kind: tuple(value.shape) for kind, value in found.items() if kind != "step"}
        if found and (set(found) != set(kinds) or any(shape != tuple(parameter.shape) for shape in shapes.values())):
            raise MemtokError(f"expected the whole state of {name} in {where}, found another; delete it to start anew")
        for kind, value in found.items():
            # torch keeps Adam's step counts on the CPU.
            optimizer.state[parameter][kind] = (
                value.clone() if kind == "step" else value.to(parameter.device, copy=True)
            )
    if left:
        raise MemtokError(f"expected no {min(left)} in {where}, found one; delete it to start anew")
