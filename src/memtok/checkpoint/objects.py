"""Model objects: rejected if a copy would not give the same outputs."""

from __future__ import annotations

from torch import nn

from memtok.checkpoint.architectures.common import type_text
from memtok.errors import MemtokError


def check_unchanged(model: nn.Module) -> None:
    """MemtokError for a model whose outputs do not follow from its class and its weights alone.

    That is a model with hooks, with a method replaced on the object, or with weights that are no plain tensors
    (quantised, sharded, on the meta device). memtok uses the weights directly and calls few modules as a whole, so it
    would bypass hooks and patches.
    """
    for name, module in model.named_modules():
        where = name or f"the {type(module).__name__} itself"
        if type(module).__name__ == "OptimizedModule":
            raise MemtokError(
                f"expected a model before torch.compile, found a compiled {where}; give the one that was compiled, and "
                "compile with MemoryViT.compile",
                argument="source",
            )
        for attribute, value in vars(module).items():
            # Hooks on the state dict do not change outputs.
            if "hooks" in attribute and "state_dict" not in attribute and value:
                raise MemtokError(
                    f"expected a model without hooks, found {attribute.strip('_').replace('_', ' ')} on {where}, which "
                    "a backbone would not call; remove them (handle.remove()) and load it again",
                    argument="source",
                )
            if callable(getattr(type(module), attribute, None)):
                raise MemtokError(
                    f"expected a model as its class makes it, found another {attribute} put on {where}, which a "
                    f"backbone would not call; undo it (del module.{attribute}) and load it again",
                    argument="source",
                )
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise MemtokError(
                f"expected a model with its weights, found {name} on the meta device; load its weights first",
                argument="source",
            )
        if type(parameter) is not nn.Parameter or not parameter.is_floating_point():
            raise MemtokError(
                f"expected plain floating-point weights, found {type_text(parameter)} of {parameter.dtype} in {name}; "
                "give the model before it was quantised or sharded",
                argument="source",
            )
