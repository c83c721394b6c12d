"""memtok adds tasks to a pre-trained Vision Transformer by learnable memory, and changes nothing that it already does.

    backbone = memtok.load_backbone("facebook/dinov2-small", image_size=224)
    task = memtok.Task.create(backbone, name="pets", classes=["cat", "dog"])
    memtok.train(task, "folder:photos")
    model = memtok.MemoryViT(backbone, [task])
    out = model(images)                      # out.base, out.features, out["pets"]

Names are imported when they are first used, so that `import memtok` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> module that defines it.
_HOMES = {
    "Backbone": "backbone",
    "load_backbone": "backbone",
    "load_task": "bundle",
    "load_tasks": "bundle",
    "read_legacy": "legacy",
    "save_tasks": "bundle",
    "MemtokError": "errors",
    "evaluate": "evaluation",
    "load_onnx": "exports.opened",
    "export": "exports.writing",
    "MemoryViT": "model",
    "Outputs": "outputs",
    "TaskAttention": "outputs",
    "predict": "prediction",
    "Preprocessing": "preprocessing",
    "attention_mask": "reference",
    "reference_outputs": "reference",
    "Task": "task",
    "sweep": "sweeps",
    "open_data": "data",
    "evaluation_transform": "data",
    "training_transform": "data",
    "FullModel": "training",
    "choose_form": "training",
    "train": "training",
    "train_together": "training",
    "verify": "verification",
}

__all__ = [
    "Backbone",
    "FullModel",
    "MemoryViT",
    "MemtokError",
    "Outputs",
    "Preprocessing",
    "Task",
    "TaskAttention",
    "__version__",
    "attention_mask",
    "choose_form",
    "evaluate",
    "evaluation_transform",
    "export",
    "load_backbone",
    "load_onnx",
    "load_task",
    "load_tasks",
    "open_data",
    "predict",
    "read_legacy",
    "reference_outputs",
    "save_tasks",
    "sweep",
    "train",
    "train_together",
    "training_transform",
    "verify",
]

if TYPE_CHECKING:
    from memtok.backbone import Backbone, load_backbone
    from memtok.bundle import load_task, load_tasks, save_tasks
    from memtok.data import evaluation_transform, open_data, training_transform
    from memtok.errors import MemtokError
    from memtok.evaluation import evaluate
    from memtok.exports.opened import load_onnx
    from memtok.exports.writing import export
    from memtok.legacy import read_legacy
    from memtok.model import MemoryViT
    from memtok.outputs import Outputs, TaskAttention
    from memtok.prediction import predict
    from memtok.preprocessing import Preprocessing
    from memtok.reference import attention_mask, reference_outputs
    from memtok.sweeps import sweep
    from memtok.task import Task
    from memtok.training import FullModel, choose_form, train, train_together
    from memtok.verification import verify


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'memtok' has no attribute {name!r}")
    value = getattr(import_module(f"memtok.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
