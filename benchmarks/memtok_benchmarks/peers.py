"""Packages of others, at the sizes of the backbone and used as in their documentation.

None of them is a dependency; the extra `bench` installs them. All weights are random: times do not depend on them.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn

from memtok_benchmarks.floor import Geometry
from memtok_benchmarks.scene import Scene

# Package on PyPI -> module.
PACKAGES = {
    "vit-pytorch": "vit_pytorch",
    "peft": "peft",
    "transformers": "transformers",
    "scikit-learn": "sklearn",
    "onnx": "onnx",
    "onnxscript": "onnxscript",
    "onnxruntime": "onnxruntime",
}
RANK = 8


def installed(name: str) -> bool:
    """Whether a package, named as on PyPI, is installed."""
    return importlib.util.find_spec(PACKAGES[name]) is not None


def package(module: str) -> Any:
    """A module of such a package, untyped: their types differ between versions."""
    return importlib.import_module(module)


def versions() -> dict[str, str | None]:
    """The versions of all of them, None for what is not installed."""
    return {name: metadata.version(name) if installed(name) else None for name in PACKAGES}


def vit_pytorch_vit(scene: Scene) -> nn.Module:
    """vit-pytorch's ViT of the backbone's sizes, from the module whose Adapter adds memory to it."""
    module = package("vit_pytorch.learnable_memory_vit")
    geometry = Geometry.of(scene.backbone.vit)
    vit: nn.Module = module.ViT(
        image_size=scene.backbone.preprocessing.image_size,
        patch_size=scene.backbone.vit.patch_embed.patch_size,
        num_classes=max(geometry.base_classes, 1),
        dim=geometry.dim,
        depth=geometry.depth,
        heads=geometry.heads,
        dim_head=geometry.dim // geometry.heads,
        mlp_dim=geometry.hidden,
    )
    return lowered(scene, vit.to(scene.device).requires_grad_(False)).eval()


def vit_pytorch_adapter(scene: Scene, vit: nn.Module, cells: int) -> nn.Module:
    """One task on it: `Adapter` freezes the ViT and masks as Table 1 of the paper does."""
    module = package("vit_pytorch.learnable_memory_vit")
    adapter: nn.Module = module.Adapter(vit=vit, num_classes=scene.sizes.classes, num_memories_per_layer=cells)
    return adapter.to(scene.device)


class LoRA(nn.Module):
    """PEFT's LoRA of rank 8 on queries and values of transformers' ViT, and a trained classifier.

    That is PEFT's own recipe for image classification. `names` are the adapters, one per task.
    """

    def __init__(self, scene: Scene, names: tuple[str, ...]) -> None:
        super().__init__()
        peft, transformers = package("peft"), package("transformers")
        geometry = Geometry.of(scene.backbone.vit)
        config = transformers.ViTConfig(
            hidden_size=geometry.dim,
            num_hidden_layers=geometry.depth,
            num_attention_heads=geometry.heads,
            intermediate_size=geometry.hidden,
            image_size=list(scene.backbone.preprocessing.image_size),
            patch_size=list(scene.backbone.vit.patch_embed.patch_size),
            num_labels=scene.sizes.classes,
        )
        vit = transformers.ViTForImageClassification(config)
        lora = peft.LoraConfig(
            r=RANK, lora_alpha=RANK, target_modules=query_and_value(vit), modules_to_save=["classifier"]
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about each other's versions
            self.model: Any = peft.get_peft_model(vit, lora, adapter_name=names[0])
            for name in names[1:]:
                self.model.add_adapter(name, lora)
        lowered(scene, self.model.to(scene.device))

    def forward(self, images: Tensor) -> Tensor:
        """(B, classes) logits of the active adapter."""
        logits: Tensor = self.model(pixel_values=images).logits
        return logits

    def answer(self, name: str, images: Tensor) -> Tensor:
        """(B, classes) logits of one task."""
        self.model.set_adapter(name)
        return self.forward(images)

    def adapter_bytes(self, name: str) -> int:
        """What `save_pretrained` writes for one adapter, in bytes of numbers."""
        tensors = package("peft").get_peft_model_state_dict(self.model, adapter_name=name)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def query_and_value(vit: nn.Module) -> list[str]:
    """The names of the two projections, which transformers 5 renamed."""
    leaves = {name.rsplit(".", 1)[-1] for name, module in vit.named_modules() if isinstance(module, nn.Linear)}
    return ["q_proj", "v_proj"] if {"q_proj", "v_proj"} <= leaves else ["query", "value"]


def lowered(scene: Scene, model: nn.Module) -> nn.Module:
    """Casts frozen matrices to the precision of the run; autocast would cast them again in every pass."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and not module.weight.requires_grad:
            module.to(scene.dtype)
    return model


def trained(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that have a gradient."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def seeded(scene: Scene) -> torch.Generator:
    """Seeds torch's global generator, from which these packages draw, and returns it."""
    return torch.manual_seed(scene.sizes.seed)
