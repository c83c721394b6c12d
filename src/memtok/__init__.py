"""memtok adds tasks to a pre-trained Vision Transformer by learnable memory, and changes nothing that it already does.

    backbone = memtok.load_backbone("facebook/dinov2-small", image_size=224)
    task = memtok.Task.create(backbone, name="pets", classes=["cat", "dog"])
    memtok.train(task, "folder:photos")
    model = memtok.MemoryViT(backbone, [task])
    out = model(images)                      # out.base, out.features, out["pets"]

Names are imported when they are first used, so that `import memtok` is quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memtok.lazy import lazily

__version__ = "0.1.0"

# Public name -> module that defines it.
_HOMES = {
    "Backbone": "memtok.backbone",
    "load_backbone": "memtok.backbone",
    "load_task": "memtok.bundle",
    "load_tasks": "memtok.bundle",
    "read_legacy": "memtok.legacy",
    "save_tasks": "memtok.bundle",
    "MemtokError": "memtok.errors",
    "evaluate": "memtok.evaluation",
    "load_onnx": "memtok.exports.opened",
    "export": "memtok.exports.writing",
    "MemoryViT": "memtok.model",
    "Outputs": "memtok.outputs",
    "TaskAttention": "memtok.outputs",
    "predict": "memtok.prediction",
    "Preprocessing": "memtok.preprocessing",
    "attention_mask": "memtok.reference",
    "reference_outputs": "memtok.reference",
    "Task": "memtok.task",
    "sweep": "memtok.sweeps",
    "open_data": "memtok.data",
    "evaluation_transform": "memtok.data",
    "training_transform": "memtok.data",
    "FullModel": "memtok.training",
    "choose_form": "memtok.training",
    "train": "memtok.training",
    "train_together": "memtok.training",
    "verify": "memtok.verification",
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

__getattr__, __dir__ = lazily(__name__, _HOMES)
