"""The layers of a trunk, one file per family of timm's blocks; see `base` for the verbs that each of them gives."""

from __future__ import annotations

from typing import Any

from timm.models.beit import Beit as TimmBeit
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva as TimmEva
from timm.models.vision_transformer import VisionTransformer

from memtok.layers.base import Adapt, Family, Layer, Positions, final_norm, unadapted
from memtok.layers.beit import Beit
from memtok.layers.eva import Eva
from memtok.layers.vit import Vit

__all__ = ["Adapt", "Family", "Layer", "Positions", "family_of", "final_norm", "unadapted"]

FAMILIES: dict[type, Family] = {
    VisionTransformer: Vit(),
    VisionTransformerDistilled: Vit(),
    TimmEva: Eva(),
    TimmBeit: Beit(),
}


def family_of(vit: Any) -> Family:
    """The family of a timm model that `memtok.checkpoint` accepts."""
    return FAMILIES[type(vit)]
