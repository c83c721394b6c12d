"""Position embeddings for another image size, resized as in the library that the checkpoint comes from.

Sources: timm's `resample_abs_pos_embed` (bicubic, antialiased) and `interpolate_pos_encoding` in transformers'
modeling_vit, modeling_deit, modeling_dinov2, modeling_clip and modeling_siglip (bicubic, not antialiased). Relative
positions: timm's `resize_rel_pos_bias_table` and `BeitRelativePositionBias` in transformers' modeling_beit.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memtok.checkpoint.architectures.common import stride_of
from memtok.errors import MemtokError

TABLE = "relative_position_bias_table"


@torch.no_grad()
def resize_positions(vit: nn.Module, image_size: tuple[int, int], how: str) -> None:
    """Sets the image size of a timm Vision Transformer, in place. Nothing changes if it has that size.

    image_size: (height, width) in pixels. how: "timm" or "transformers", as Preprocessing.position_resize.
    MemtokError for an image size that the patches do not fill.
    """
    model: Any = vit
    patch, old_grid = stride_of(model.patch_embed), tuple(model.patch_embed.grid_size)
    check_image_size(image_size, patch)
    if tuple(model.patch_embed.img_size) == image_size:
        return
    new_grid = (image_size[0] // patch[0], image_size[1] // patch[1])
    resized: dict[str, Tensor] = {}
    if how == "transformers" and new_grid != old_grid:
        prefix = 0 if getattr(model, "no_embed_class", False) else model.num_prefix_tokens
        for name, parameter in model.named_parameters():
            if name == "pos_embed":
                resized[name] = resize_as_transformers(parameter, prefix, old_grid, new_grid)
            elif name.endswith(TABLE):
                resized[name] = resize_table_as_transformers(parameter, old_grid, new_grid)
    set_image_size(model, image_size)
    for name, values in resized.items():
        model.get_parameter(name).copy_(values)


def set_image_size(vit: Any, image_size: tuple[int, int]) -> None:
    """timm's `set_input_size`, without torch's warnings about how timm interpolates relative positions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        vit.set_input_size(img_size=image_size)


def resize_as_transformers(
    positions: Tensor, prefix: int, old_grid: tuple[int, ...], new_grid: tuple[int, int]
) -> Tensor:
    """(1, prefix + patches, D) position embeddings for another grid (rows, columns) of patches.

    MemtokError for an old grid that is not square, which transformers cannot resize.
    """
    rows, columns = _square(old_grid)
    grid = positions[:, prefix:].float().reshape(1, rows, columns, -1).permute(0, 3, 1, 2)  # (1, D, rows, columns)
    grid = F.interpolate(grid, size=new_grid, mode="bicubic", align_corners=False)
    patches = grid.permute(0, 2, 3, 1).flatten(1, 2)  # (1, patches, D)
    return torch.cat([positions[:, :prefix], patches.to(positions.dtype)], dim=1)


def resize_table_as_transformers(table: Tensor, old_grid: tuple[int, ...], new_grid: tuple[int, int]) -> Tensor:
    """(distances + 3, heads) relative position biases for another grid (rows, columns): bilinear, not antialiased.

    There are (2 rows - 1) x (2 columns - 1) distances; the last three are to, from and among the class token.
    MemtokError for an old grid that is not square.
    """
    old, new = ([2 * side - 1 for side in grid] for grid in (_square(old_grid), new_grid))
    distances = table[:-3].float().T.reshape(1, -1, *old)  # (1, heads, rows, columns)
    distances = F.interpolate(distances, size=new, mode="bilinear", align_corners=False)
    return torch.cat([distances.flatten(2)[0].T.to(table.dtype), table[-3:]])


def _square(grid: tuple[int, ...]) -> tuple[int, ...]:
    rows, columns = grid
    if rows != columns:
        raise MemtokError(
            f"expected a square grid of position embeddings, which is all that transformers resizes, found {rows} x "
            f"{columns}; use the checkpoint's own image size",
            argument="image_size",
        )
    return grid


def check_image_size(image_size: tuple[int, int], patch: tuple[int, int]) -> None:
    """MemtokError unless whole patches fill the image; it names the nearest size that they fill."""
    if any(side % step for side, step in zip(image_size, patch, strict=True)):
        nearest = tuple(max(1, round(side / step)) * step for side, step in zip(image_size, patch, strict=True))
        raise MemtokError(
            f"expected an image size (height, width) that is a multiple of the patch {tuple(patch)}, found "
            f"{image_size}; the nearest is {nearest}",
            argument="image_size",
        )
