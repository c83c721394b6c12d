"""The families of timm's models that can carry tasks, one file each."""

from __future__ import annotations

from memtok.checkpoint.architectures.beit import BeitArchitecture
from memtok.checkpoint.architectures.common import Architecture
from memtok.checkpoint.architectures.eva import EvaArchitecture
from memtok.checkpoint.architectures.vit import VitArchitecture

FAMILIES: tuple[type[Architecture], ...] = (VitArchitecture, EvaArchitecture, BeitArchitecture)
