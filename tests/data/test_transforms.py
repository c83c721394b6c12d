"""The transforms equal those of the libraries that the checkpoints come from, and normalise in every form."""

from __future__ import annotations

import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform

from memtok.data.transforms import (
    AUGMENTATIONS,
    Normaliser,
    evaluation_pixels,
    evaluation_transform,
    training_pixels,
    training_transform,
)
from memtok.errors import MemtokError
from memtok.preprocessing import Preprocessing

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# (width, height): square, wide, tall, odd, smaller than the input, very small
SIZES = [(40, 40), (61, 40), (37, 90), (41, 43), (20, 13), (1, 2)]


def settings(**changes: object) -> Preprocessing:
    values: dict[str, object] = {
        "image_size": (32, 32),
        "resize": 37,
        "crop": True,
        "interpolation": "bicubic",
        "mean": MEAN,
        "std": STD,
        "position_resize": "timm",
        **changes,
    }
    return Preprocessing(**values)  # type: ignore[arg-type]


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("shorter", [37, 39])
def test_evaluation_equals_timm(size: tuple[int, int], interpolation: str, shorter: int) -> None:
    expected = create_transform(
        input_size=(3, 32, 32),
        is_training=False,
        interpolation=interpolation,
        mean=MEAN,
        std=STD,
        crop_pct=32 / shorter,
    )(picture(size))
    found = evaluation_transform(settings(resize=shorter, interpolation=interpolation))(picture(size))
    assert found.shape == (3, 32, 32)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_evaluation_by_squashing_equals_timm(size: tuple[int, int]) -> None:
    expected = create_transform(
        input_size=(3, 32, 24), is_training=False, interpolation="bilinear", crop_pct=1.0, crop_mode="squash"
    )(picture(size))
    changed = settings(image_size=(32, 24), resize=(32, 24), crop=False, interpolation="bilinear")
    torch.testing.assert_close(evaluation_transform(changed)(picture(size)), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("resample", [2, 3])
@pytest.mark.parametrize("shorter", [37, 39])
def test_evaluation_equals_transformers(size: tuple[int, int], resample: int, shorter: int) -> None:
    bit = pytest.importorskip("transformers.models.bit.image_processing_pil_bit")
    vit = pytest.importorskip("transformers.models.vit.image_processing_pil_vit")
    interpolation = {2: "bilinear", 3: "bicubic"}[resample]
    common = {"resample": resample, "image_mean": MEAN, "image_std": STD}

    cropped = bit.BitImageProcessorPil(
        size={"shortest_edge": shorter}, crop_size={"height": 32, "width": 32}, do_center_crop=True, **common
    )(picture(size), return_tensors="pt")["pixel_values"][0]
    changed = settings(resize=shorter, interpolation=interpolation, position_resize="transformers")
    torch.testing.assert_close(evaluation_transform(changed)(picture(size)), cropped, rtol=0, atol=1e-6)

    squashed = vit.ViTImageProcessorPil(size={"height": 32, "width": 24}, **common)(
        picture(size), return_tensors="pt", input_data_format="channels_last"
    )["pixel_values"][0]
    changed = settings(image_size=(32, 24), resize=(32, 24), crop=False, interpolation=interpolation)
    torch.testing.assert_close(evaluation_transform(changed)(picture(size)), squashed, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize(("augment", "scale"), [("inception", (0.08, 1.0)), ("light", (0.5, 1.0))])
def test_random_parts_equal_those_of_timm(
    size: tuple[int, int], flip: bool, augment: str, scale: tuple[float, float]
) -> None:
    expected = create_transform(
        input_size=(3, 32, 32),
        is_training=True,
        scale=scale,
        color_jitter=0.0,
        hflip=0.5 if flip else 0.0,
        interpolation="bicubic",
        mean=MEAN,
        std=STD,
    )
    found = training_transform(settings(), augment, flip)
    for seed in range(8):
        random.seed(seed)
        torch.manual_seed(seed)
        wanted = expected(picture(size))
        random.seed(seed)
        torch.manual_seed(seed)
        torch.testing.assert_close(found(picture(size)), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("augment", AUGMENTATIONS)
@pytest.mark.parametrize(("colour", "value"), [((255, 255, 255), 1.0), ((0, 0, 0), 0.0), ((51, 51, 51), 0.2)])
def test_pixels_are_normalised(augment: str, colour: tuple[int, int, int], value: float) -> None:
    # Fault 2 of the reproduction: its pixels stayed in [0, 1].
    expected = torch.tensor([(value - mean) / std for mean, std in zip(MEAN, STD, strict=True)])
    for transform in (training_transform(settings(), augment), evaluation_transform(settings())):
        found = transform(Image.new("RGB", (50, 40), colour))
        assert found.shape == (3, 32, 32)
        torch.testing.assert_close(found, expected[:, None, None].expand(3, 32, 32), rtol=0, atol=1e-5)


@pytest.mark.parametrize("augment", AUGMENTATIONS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("resize", [37, (40, 44)])
def test_every_size_of_image_gives_the_input_size(
    augment: str, size: tuple[int, int], resize: int | tuple[int, int]
) -> None:
    found = training_transform(settings(image_size=(32, 24), resize=resize), augment)(picture(size))
    assert found.shape == (3, 32, 24)
    assert found.dtype == torch.float32
    assert found.is_contiguous()


def test_crop_moves_by_up_to_an_eighth_and_mirrors_when_allowed() -> None:
    # A picture whose red is its column and whose green is its row, so that a crop says where it was cut.
    rows, columns = np.mgrid[0:37, 0:37].astype(np.uint8)
    image = Image.fromarray(np.dstack([columns, rows, rows]))
    plain = settings(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), interpolation="nearest")

    def corners(flip: bool) -> set[tuple[int, int, bool]]:
        transform = training_transform(plain, "crop", flip)
        seen = set()
        for _ in range(300):
            red, green, _ = (transform(image) * 255).round().int()
            left, right = int(red[0, 0]), int(red[0, -1])
            assert abs(left - right) == 31
            seen.add((min(left, right), int(green[0, 0]), left > right))
        return seen

    torch.manual_seed(0)
    still = corners(flip=False)
    assert {place[0] for place in still} == {place[1] for place in still} == set(range(6))  # 37 - 32 = 5
    assert {place[2] for place in still} == {False}
    assert {place[2] for place in corners(flip=True)} == {False, True}


def test_no_augmentation_is_the_evaluation() -> None:
    transform = training_transform(settings(), "none", flip=True)
    for seed in range(8):
        torch.manual_seed(seed)
        assert torch.equal(transform(picture((50, 40))), evaluation_transform(settings())(picture((50, 40))))


@pytest.mark.parametrize("augment", AUGMENTATIONS)
@pytest.mark.parametrize("flip", [False, True])
def test_pixels_normalised_as_a_batch_are_the_same_numbers(augment: str, flip: bool) -> None:
    """Bit for bit what numpy and plain arithmetic, or timm's own last steps, make of one picture after the other."""
    odd = settings(mean=(0.481, 0.458, 0.408), std=(0.269, 0.261, 0.276), image_size=(32, 24), resize=(40, 44))
    pixels, transform = training_pixels(odd, augment, flip), training_transform(odd, augment, flip)
    mean, std = (torch.tensor(values)[:, None, None] for values in (odd.mean, odd.std))
    timm = create_transform(
        input_size=(3, 32, 24),
        is_training=True,
        scale=(0.08, 1.0),
        ratio=(3 / 4, 4 / 3),
        hflip=0.5 if flip else 0.0,
        color_jitter=None,
        interpolation=odd.interpolation,
        mean=odd.mean,
        std=odd.std,
    )
    found, expected = [], []
    for seed, size in enumerate([*SIZES, *SIZES]):
        random.seed(seed)
        torch.manual_seed(seed)
        found.append(pixels(picture(size)))
        state = torch.get_rng_state(), random.getstate()
        random.seed(seed)
        torch.manual_seed(seed)
        expected.append(transform(picture(size)))
        assert torch.equal(torch.get_rng_state(), state[0])
        assert random.getstate() == state[1]
        by_hand = (torch.from_numpy(found[-1].numpy().astype(np.float32)) / 255 - mean) / std
        if augment == "inception":
            random.seed(seed)
            torch.manual_seed(seed)
            by_hand = timm(picture(size))
        assert torch.equal(expected[-1], by_hand)
    batch = torch.stack(found)
    assert batch.dtype == torch.uint8
    before = batch.clone()
    assert torch.equal(Normaliser(odd)(batch), torch.stack(expected))
    assert torch.equal(batch, before)
    if augment == "none":
        assert torch.equal(evaluation_pixels(odd)(picture(SIZES[0])), pixels(picture(SIZES[0])))


def test_every_value_of_a_pixel_is_normalised_as_by_plain_arithmetic() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    plain = torch.from_numpy(pixels.numpy().astype(np.float32)) / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    assert torch.equal(Normaliser(settings())(pixels), (plain - mean) / std)


@pytest.mark.gpu
def test_a_gpu_normalises_to_the_same_numbers() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    normalise = Normaliser(settings())
    assert torch.equal(normalise(pixels.cuda()).cpu(), normalise(pixels))


def test_only_pixels_are_normalised() -> None:
    with pytest.raises(MemtokError) as error:
        Normaliser(settings())(torch.zeros(3, 2, 2))
    assert error.value.argument == "pixels"


def test_transforms_can_be_sent_to_workers() -> None:
    for augment in AUGMENTATIONS:
        transform = training_transform(settings(), augment)
        copy = pickle.loads(pickle.dumps(transform))
        random.seed(1)
        torch.manual_seed(1)
        first = transform(picture((50, 40)))
        random.seed(1)
        torch.manual_seed(1)
        assert torch.equal(copy(picture((50, 40))), first)


def test_an_unknown_augmentation_is_refused() -> None:
    with pytest.raises(MemtokError) as error:
        training_transform(settings(), "mixup")
    assert error.value.argument == "augment"


THIN = [(60000, 1), (1, 60000), (2_000_000, 1), (30000, 3)]


@pytest.mark.parametrize("size", THIN)
@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_long_and_thin_pictures_are_not_blown_up(
    size: tuple[int, int], augment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """60000 x 1 resized to a shorter side of 256 would be 15 million x 256: 12 GB."""
    made: list[int] = []
    resize = Image.Image.resize

    def record(image: Image.Image, to: tuple[int, int], *arguments: object, **options: object) -> Image.Image:
        made.append(to[0] * to[1])
        assert to[0] * to[1] <= 2**24
        return resize(image, to, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Image.Image, "resize", record)
    usual = settings(image_size=(224, 224), resize=256)
    image = Image.new("RGB", size, (51, 51, 51))
    for transform in (training_pixels(usual, augment), evaluation_pixels(usual)):
        found = transform(image)
        assert found.shape == (3, 224, 224)
        assert (found == 51).all()
    assert made


@pytest.mark.parametrize("size", [*SIZES, (300, 20), (11, 333), (640, 480)])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("augment", ["crop", "none"])
def test_cropping_before_the_resize_gives_nearly_the_same(
    size: tuple[int, int], interpolation: str, augment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What long and thin pictures go through, held against the usual way on pictures that can go both."""
    smooth = picture((9, 7), seed=3).resize(size, Image.Resampling.BICUBIC)
    found = []
    for largest in (2**24, 0):
        monkeypatch.setattr("memtok.data.pixels.LARGEST_RESIZED", largest)
        torch.manual_seed(0)
        found.append(training_pixels(settings(interpolation=interpolation), augment)(smooth).int())
    assert found[0].shape == found[1].shape == (3, 32, 32)
    difference = (found[0] - found[1]).abs()
    if interpolation != "nearest":  # which may take the pixel beside where a position lies between two
        assert int(difference.max()) <= 2
    assert float((difference > 1).float().mean()) < 0.04
