"""The optimizer of N tasks: a parameter group per task and kind of parameter, its state under the parameters' names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from memtok.errors import MemtokError
from memtok.task import Task
from memtok.training.device import Processes, add_up, add_up_gradients
from memtok.training.plan import Plan
from memtok.training.recipes import learning_rate_at
from memtok.training.regimes import Trainable


class Optimizer:
    """SGD or AdamW over the parameters of N tasks; each task has its own learning rate, weight decay and clipping.

    The parameters of a task's `without_decay` do not decay. Plans differ in learning rate and weight decay only.
    """

    def __init__(self, tasks: Sequence[Trainable], plans: Sequence[Plan], processes: Processes) -> None:
        self.plans, self.processes = plans, processes
        self.parameters = [list(task.parameters()) for task in tasks]
        self.names = [dict(task.named_parameters()) for task in tasks]
        self.groups = [parameter_groups(task, plan) for task, plan in zip(tasks, plans, strict=True)]
        groups = [group for own in self.groups for group in own]
        plan = plans[0]
        if plan.optimizer == "sgd":
            self.torch: torch.optim.Optimizer = torch.optim.SGD(groups, momentum=plan.momentum)
        else:
            self.torch = torch.optim.AdamW(groups, betas=plan.betas)

    def rate(self, task: int, step: int) -> float:
        """The learning rate of a task at step `step`, counted from 0."""
        plan = self.plans[task]
        return learning_rate_at(step, peak=plan.learning_rate, warmup=plan.warmup, steps=plan.steps)

    def begin(self, step: int) -> None:
        """Sets the learning rates of step `step` and clears the gradients."""
        for task, groups in enumerate(self.groups):
            for group in groups:
                group["lr"] = self.rate(task, step) * (group["times"] if self.plans[task].by_part else 1.0)
        self.torch.zero_grad(set_to_none=True)

    def apply(self, losses: Tensor) -> Tensor:
        """Clips the gradients of each task, updates all parameters; returns (N, 2): losses, gradient norms.

        losses: (N,) of this process. What is returned is of all processes; the norms are those before clipping.
        """
        add_up_gradients(self.processes, [parameter for own in self.parameters for parameter in own])
        (losses,) = add_up(self.processes, [losses])
        norms = [
            nn.utils.clip_grad_norm_(own, plan.clip_norm) for own, plan in zip(self.parameters, self.plans, strict=True)
        ]
        self.torch.step()
        return torch.stack([losses, torch.stack([norm.detach().to(losses) for norm in norms])], dim=1)

    def tensors(self, task: int) -> dict[str, Tensor]:
        """What the optimizer keeps of a task, as `KIND.PARAMETER`, such as `exp_avg.head.weight`."""
        return {
            f"{kind}.{name}": value
            for name, parameter in self.names[task].items()
            for kind, value in self.torch.state.get(parameter, {}).items()
            if isinstance(value, Tensor)
        }

    def restore(self, task: int, tensors: Mapping[str, Tensor], where: str) -> None:
        """Puts the result of `tensors` back; MemtokError if it is not the state of this optimizer."""
        sgd = isinstance(self.torch, torch.optim.SGD)
        kinds = ("momentum_buffer",) if sgd else ("step", "exp_avg", "exp_avg_sq")
        left = dict(tensors)
        for name, parameter in self.names[task].items():
            found = {kind: left.pop(key) for kind in kinds if (key := f"{kind}.{name}") in left}
            shapes = {tuple(value.shape) for kind, value in found.items() if kind != "step"}
            if found and (set(found) != set(kinds) or shapes != {tuple(parameter.shape)}):
                raise MemtokError(
                    f"expected the whole state of {name} in {where}, found another; delete it to start anew"
                )
            for kind, value in found.items():
                # torch keeps Adam's step counts on the CPU.
                self.torch.state[parameter][kind] = (
                    value.clone() if kind == "step" else value.to(parameter.device, copy=True)
                )
        if left:
            raise MemtokError(f"expected no {min(left)} in {where}, found one; delete it to start anew")


def parameter_groups(task: Trainable, plan: Plan) -> list[dict[str, Any]]:
    """The parameters of a task by rate and weight decay; times: their rate as a multiple, where parts differ in it."""
    spared = task.without_decay()
    rates = task.rates() if isinstance(task, Task) else {}
    kinds: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in task.parameters():
        kind = rates.get(parameter, 1.0), 0.0 if parameter in spared else plan.weight_decay
        kinds.setdefault(kind, []).append(parameter)
    return [
        {"params": some, "lr": plan.learning_rate, "times": times, "weight_decay": decay}
        for (times, decay), some in sorted(kinds.items(), key=lambda item: (item[0][0], -item[0][1]))
    ]
