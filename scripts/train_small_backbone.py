"""Train the small Vision Transformer that memtok ships, on Fashion-MNIST, and store it in timm's layout.

    .venv/bin/python scripts/train_small_backbone.py --data /usr/share/datasets/fashion-mnist

`--data` is a folder with the four idx files of Fashion-MNIST, gzipped or not (Debian: dataset-fashion-mnist).
One core, about 40 minutes. The state is kept in `--state`; started again after a kill, the run goes on where
it was and ends with the same tensors. What was measured stands in docs/small-backbone.md.

    .venv/bin/python scripts/train_small_backbone.py --probe

measures how well what is stored carries over to handwritten digits.

Letters for dimensions: B images of a batch, C classes.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from timm.layers import build_sincos2d_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from memtok import evaluation_transform, load_backbone, open_data
from memtok.data import ImageSet
from memtok.files import atomic_write, write_json

# timm rebuilds the model from one of its own architectures and these arguments.
ARCHITECTURE = "vit_tiny_patch16_224"
MODEL_ARGS = {"img_size": 28, "patch_size": 7, "embed_dim": 128, "depth": 6, "num_heads": 4}
CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
MEAN, STD = 0.5, 0.5
OUTPUT = Path(__file__).resolve().parent.parent / "src" / "memtok" / "assets" / "small-vit"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All that the result depends on, beside the data and the versions of torch and timm."""

    epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup_steps: int = 500
    label_smoothing: float = 0.05
    clip_norm: float = 1.0
    seed: int = 0


def read_idx(folder: Path, name: str) -> Tensor:
    """The uint8 tensor in the idx file `name`, gzipped or not (format: yann.lecun.com/exdb/mnist)."""
    plain, packed = folder / name, folder / f"{name}.gz"
    content = plain.read_bytes() if plain.exists() else gzip.decompress(packed.read_bytes())
    if content[:3] != b"\x00\x00\x08":
        raise SystemExit(f"expected an idx file of bytes, found something else in {plain}")
    rank = content[3]
    shape = np.frombuffer(content, dtype=">u4", count=rank, offset=4).astype(int)
    values = np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * rank).reshape(shape)
    return torch.from_numpy(values.copy())


def read_part(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images (N, 28, 28) uint8 and labels (N,) int64 of "train" or "t10k"."""
    images = read_idx(folder, f"{part}-images-idx3-ubyte")
    labels = read_idx(folder, f"{part}-labels-idx1-ubyte").long()
    return images, labels


def normalise(images: Tensor) -> Tensor:
    """Grey images (B, 28, 28) in [0, 1] to what the model receives, (B, 3, 28, 28), grey repeated."""
    return ((images - MEAN) / STD)[:, None].expand(-1, 3, -1, -1)


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Flip, turn by up to 10 degrees, scale by 0.85 to 1.15, shift by up to 2 pixels; (B, 28, 28) in [0, 1].

    One bilinear resampling does it all; what comes in from outside is black, as the background is.
    """
    count = len(images)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(count, generator=generator) * (high - low) + low

    flip = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    angle = uniform(-10, 10) * (math.pi / 180)
    zoom = uniform(0.85, 1.15)
    limit = 2 / (images.shape[-1] / 2)  # 2 pixels, where the image reaches from -1 to 1
    cosine, sine = zoom * angle.cos(), zoom * angle.sin()
    rows = [cosine * flip, -sine, uniform(-limit, limit), sine * flip, cosine, uniform(-limit, limit)]
    matrix = torch.stack(rows, dim=1).view(count, 2, 3)
    grid = F.affine_grid(matrix, [count, 1, *images.shape[1:]], align_corners=False)  # (B, 28, 28, 2)
    return F.grid_sample(images[:, None], grid, align_corners=False)[:, 0]


def learning_rate_at(step: int, total: int, settings: Settings) -> float:
    """Linear warm-up, then a cosine to zero at `total` steps."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / (total - settings.warmup_steps)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def build() -> VisionTransformer:
    """A new model. The learned position embeddings start as sines and cosines: with so few epochs that helps."""
    model = VisionTransformer(**MODEL_ARGS, num_classes=len(CLASSES), weight_init="jax")
    side = MODEL_ARGS["img_size"] // MODEL_ARGS["patch_size"]
    waves = build_sincos2d_pos_embed([side, side], MODEL_ARGS["embed_dim"])  # (patches, dim), in [-1, 1]
    with torch.no_grad():
        model.pos_embed[0, 1:] = 0.5 * waves
        model.pos_embed[0, 0] = 0  # the class position
    return model


def build_optimizer(model: VisionTransformer, settings: Settings) -> torch.optim.AdamW:
    """AdamW; vectors (biases, norms), the class token and the position embedding do not decay."""
    decay: list[Tensor] = []
    keep: list[Tensor] = []
    for name, parameter in model.named_parameters():
        (keep if parameter.ndim == 1 or name in model.no_weight_decay() else decay).append(parameter)
    groups = [{"params": decay, "weight_decay": settings.weight_decay}, {"params": keep, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98))


def save_state(path: Path, model: VisionTransformer, optimizer: torch.optim.AdamW, meta: dict[str, str]) -> None:
    """Model, both moments of every parameter and what the run is, as one safetensors file."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        moments = optimizer.state[parameter]
        tensors |= {f"{key}.{name}": moments[key] for key in ("step", "exp_avg", "exp_avg_sq")}
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata=meta)


def load_state(path: Path, model: VisionTransformer, optimizer: torch.optim.AdamW, run: str) -> tuple[int, float]:
    """Put a state back; the number of steps done and the seconds they took. (0, 0.0) where there is none."""
    if not path.exists():
        return 0, 0.0
    with safe_open(path, framework="pt") as file:
        meta = file.metadata()
        if meta["run"] != run:
            raise SystemExit(f"{path} belongs to a run with other settings; remove it or name another --state")
        model.load_state_dict({name: file.get_tensor(f"model.{name}") for name in model.state_dict()})
        for name, parameter in model.named_parameters():
            keys = ("step", "exp_avg", "exp_avg_sq")
            optimizer.state[parameter] = {key: file.get_tensor(f"{key}.{name}") for key in keys}
    print(f"going on after step {meta['steps']} of {path}", flush=True)
    return int(meta["steps"]), float(meta["seconds"])


@torch.no_grad()
def accuracy(model: torch.nn.Module, images: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy in [0, 1] on uint8 images (N, 28, 28)."""
    model.eval()
    right = 0
    for start in range(0, len(images), 500):
        logits = model(normalise(images[start : start + 500] / 255))  # (B, C)
        right += int((logits.argmax(dim=1) == labels[start : start + 500]).sum())
    return right / len(images)


def train(settings: Settings, data: Path, state: Path, stop_after: int | None) -> VisionTransformer:
    """The trained model. Every random draw comes from (seed, step), so a resumed run repeats it exactly."""
    images, labels = read_part(data, "train")
    per_epoch = len(images) // settings.batch_size
    total = settings.epochs * per_epoch
    torch.manual_seed(settings.seed)
    model = build()
    optimizer = build_optimizer(model, settings)
    run = json.dumps({"settings": asdict(settings), "model": MODEL_ARGS})
    first, seconds_before = load_state(state, model, optimizer, run)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{count:,} parameters, {len(images):,} images, {total:,} steps of {settings.batch_size}", flush=True)

    started, mean_loss = time.monotonic(), 0.0
    model.train()
    for step in range(first, total):
        epoch, position = divmod(step, per_epoch)
        if step == first or position == 0:
            shuffle = torch.Generator().manual_seed(settings.seed * 1000 + epoch)
            order = torch.randperm(len(images), generator=shuffle)
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        rate = learning_rate_at(step, total, settings)
        for group in optimizer.param_groups:
            group["lr"] = rate
        chosen = order[position * settings.batch_size : (position + 1) * settings.batch_size]
        batch = normalise(augment(images[chosen] / 255, generator))
        loss = F.cross_entropy(model(batch), labels[chosen], label_smoothing=settings.label_smoothing)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        optimizer.step()
        if not math.isfinite(loss.item()):
            raise SystemExit(f"the loss is {loss.item()} at step {step + 1}; try a smaller --learning-rate")
        mean_loss += (loss.item() - mean_loss) / min(step - first + 1, 100)

        done = step + 1
        if done % 100 == 0 or done == total:
            per_step = (time.monotonic() - started) / (done - first)
            print(
                f"step {done}/{total}  loss {mean_loss:.4f}  rate {rate:.2e}"
                f"  {settings.batch_size / per_step:.0f} images/s"
                f"  {(total - done) * per_step / 60:.1f} min left",
                flush=True,
            )
        if done % 500 == 0 or done in (total, stop_after):
            seconds = seconds_before + time.monotonic() - started
            save_state(state, model, optimizer, {"run": run, "steps": str(done), "seconds": f"{seconds:.1f}"})
            if done == total:
                print(f"trained in {seconds / 60:.1f} minutes", flush=True)
        if done == stop_after:
            raise SystemExit(f"stopped after step {done}, as asked; the state is in {state}")
    return model


def store(model: VisionTransformer, folder: Path) -> None:
    """Write config.json and model.safetensors (float16: half the size) as `timm.create_model` reads them."""
    size = [3, MODEL_ARGS["img_size"], MODEL_ARGS["img_size"]]
    preprocessing = {
        "input_size": size,
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "center",
        "mean": [MEAN] * 3,
        "std": [STD] * 3,
        "num_classes": len(CLASSES),
        "pool_size": None,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "mit",
    }
    config = {
        "architecture": ARCHITECTURE,
        "num_classes": len(CLASSES),
        "num_features": model.num_features,
        "global_pool": "token",
        "model_args": MODEL_ARGS,
        "label_names": list(CLASSES),
        "pretrained_cfg": preprocessing,
    }
    with atomic_write(folder / "model.safetensors") as temporary:
        save_file(
            {name: value.half().contiguous() for name, value in model.state_dict().items()},
            temporary,
            metadata={"format": "pt"},
        )
    write_json(folder / "config.json", config)


def probe(folder: Path) -> float:
    """Top-1 accuracy in [0, 1] of logistic regression on the stored model's features of memtok's digits."""
    backbone, digits = load_backbone(folder), open_data("digits")
    transform = evaluation_transform(backbone.preprocessing)

    def features_and_labels(part: ImageSet) -> tuple[Tensor, Tensor]:
        images = torch.stack([transform(part[index][0]) for index in range(len(part))])
        with torch.no_grad():
            features, _ = backbone(images)
        return features, torch.tensor([part[index][1] for index in range(len(part))])

    features, labels = features_and_labels(digits.train)
    test_features, test_labels = features_and_labels(digits.test)
    mean, std = features.mean(dim=0), features.std(dim=0)
    head = torch.nn.Linear(features.shape[1], len(digits.classes))
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss_of_all() -> float:
        optimizer.zero_grad()
        # A weak pull to zero: the best head exists, and it is one.
        penalty = head.weight.square().sum() / (2 * len(labels))
        loss = F.cross_entropy(head((features - mean) / std), labels) + penalty
        torch.autograd.backward(loss)
        return loss.item()

    optimizer.step(loss_of_all)
    with torch.no_grad():
        answers = head((test_features - mean) / std).argmax(dim=1)
    return (answers == test_labels).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with Fashion-MNIST's four idx files")
    parser.add_argument("--probe", action="store_true", help="train nothing; measure what is in --out on digits")
    parser.add_argument("--out", type=Path, default=OUTPUT, help="folder to write")
    parser.add_argument("--state", type=Path, default=Path("runs/small-backbone.safetensors"))
    parser.add_argument("--stop-after", type=int, default=None, help="stop after this step (to try resuming)")
    defaults = Settings()
    for name, value in asdict(defaults).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    arguments = parser.parse_args()
    settings = Settings(**{name: getattr(arguments, name) for name in asdict(defaults)})

    if not arguments.probe and arguments.data is None:
        parser.error("expected --data FOLDER to train, or --probe, found neither")

    torch.set_num_threads(1)  # the sums of several threads need not repeat exactly
    print(
        f"torch {torch.__version__}, timm {timm.__version__}, Python {platform.python_version()},"
        f" {os.cpu_count()} cores of {platform.machine()} (one is used)",
        flush=True,
    )
    if arguments.probe:
        print(f"logistic regression on the digits' features: accuracy {probe(arguments.out):.4f}")
        return
    model = train(settings, arguments.data, arguments.state, arguments.stop_after)
    store(model, arguments.out)

    stored = timm.create_model(f"local-dir:{arguments.out.resolve()}", pretrained=True)
    size = sum(path.stat().st_size for path in arguments.out.iterdir())
    top1 = accuracy(stored, *read_part(arguments.data, "t10k"))
    print(f"{arguments.out}: {size / 1e6:.2f} MB, accuracy on the 10,000 test images {top1:.4f}", flush=True)


if __name__ == "__main__":
    main()
