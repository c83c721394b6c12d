"""timm's `VisionTransformer`: ViT, DeiT, DINOv2, CLIP, SigLIP, AIMv2, MAE.

Source: Dosovitskiy et al., ICLR 2021 (arXiv 2010.11929), as implemented by timm's `VisionTransformer`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from memtok.layers.base import Family, Layer, norm_before


class VitLayer(Layer):
    """timm's `Block` with `Attention`: one joint projection, layer scale in modules."""

    def bias(self) -> Tensor | None:
        bias: Tensor | None = self.attention.qkv.bias
        return bias

    def scale_branch(self, branch: int, update: Tensor) -> Tensor:
        scaled: Tensor = self.block.ls1(update) if branch == 1 else self.block.ls2(update)
        return scaled


class Vit(Family):
    """timm's `VisionTransformer` and `VisionTransformerDistilled`."""

    layer = VitLayer

    def enter(self, vit: Any, images: Tensor) -> Tensor:
        # timm has no public method that ends before the first layer, and this one is what its subclasses override.
        entered: Tensor = norm_before(vit)(vit.patch_drop(vit._pos_embed(vit.patch_embed(images))))
        return entered
