"""Prediction: names and probabilities for files and folders."""

from __future__ import annotations

import csv
import errno
import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import memtok
from memtok.data import evaluation_transform
from memtok.errors import MemtokError
from memtok.prediction import find_images
from tests.tiny import tiny_backbone, tiny_task


@pytest.fixture(scope="module")
def model() -> memtok.MemoryViT:
    backbone = tiny_backbone()
    return memtok.MemoryViT(
        backbone, [tiny_task(backbone, "pets", seed=1), tiny_task(backbone, "cars", seed=2, classes=7)]
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five pictures in two levels, one of them grey, beside files that are no pictures."""
    generator = np.random.default_rng(0)
    inside = tmp_path / "photos"
    (inside / "deep" / ".hidden").mkdir(parents=True)
    for name in ("b.png", "a.jpg", "deep/c.PNG", "deep/d.bmp"):
        Image.fromarray(generator.integers(0, 256, (40, 36, 3), dtype=np.uint8)).save(inside / name)
    Image.fromarray(generator.integers(0, 256, (33, 50), dtype=np.uint8)).save(inside / "grey.png")
    Image.new("RGB", (8, 8)).save(inside / "deep" / ".hidden" / "thumbnail.png")
    Image.new("RGB", (8, 8)).save(inside / "._b.png", format="PNG")
    (inside / "notes.txt").write_text("no picture")
    return inside


def test_labels_that_the_base_has_twice_are_told_apart(folder: Path) -> None:
    backbone = tiny_backbone(num_classes=3)
    backbone.classes = ("crane", "ox", "crane")
    found = memtok.predict(memtok.MemoryViT(backbone), [folder], base=True, top=3)
    transform = evaluation_transform(backbone.preprocessing)
    for row in found.rows:
        with Image.open(row.path) as image:
            logits = memtok.MemoryViT(backbone)(transform(image.convert("RGB")).unsqueeze(0)).base
        assert logits is not None
        names = [("crane (0)", "ox", "crane (2)")[index] for index in logits[0].argsort(descending=True).tolist()]
        assert [name for name, _ in row.ranking] == names


def test_rows_equal_the_models_own_answers(model: memtok.MemoryViT, folder: Path) -> None:
    found = memtok.predict(model, [folder], top=7, batch_size=2)
    names = ["a.jpg", "b.png", "deep/c.PNG", "deep/d.bmp", "grey.png"]
    assert [row.path for row in found.rows[::2]] == [str(folder / name) for name in names]
    assert [row.task for row in found.rows] == ["pets", "cars"] * 5
    transform = evaluation_transform(model.preprocessing)
    for row in found.rows:
        with Image.open(row.path) as image:
            out = model(transform(image.convert("RGB")).unsqueeze(0))
        expected = out[row.task].detach().softmax(dim=1)[0]
        classes = next(task.classes for task in model.tasks if task.name == row.task)
        assert len(row.ranking) == len(classes)  # top is more than some have
        assert [name for name, _ in row.ranking] == [classes[i] for i in expected.argsort(descending=True).tolist()]
        for name, probability in row.ranking:
            assert probability == pytest.approx(float(expected[classes.index(name)]), abs=1e-5)
        assert sum(probability for _, probability in row.ranking) == pytest.approx(1.0, abs=1e-5)


def test_json_and_csv(model: memtok.MemoryViT, folder: Path, tmp_path: Path) -> None:
    found = memtok.predict(model, [folder / "b.png"], top=2)
    stored = json.loads(json.dumps(found.to_json()))
    assert stored["skipped"] == []
    (image,) = stored["images"]
    assert image["path"] == str(folder / "b.png")
    assert image["tasks"].keys() == {"pets", "cars"}
    assert [entry.keys() for entry in image["tasks"]["cars"]] == [{"class", "probability"}] * 2

    found.write_csv(tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["task"], row["rank"]) for row in rows] == [("pets", "1"), ("pets", "2"), ("cars", "1"), ("cars", "2")]
    assert rows[2]["class"] == found.rows[1].ranking[0][0]


def test_base_classes(folder: Path) -> None:
    backbone = tiny_backbone()
    found = memtok.predict(memtok.MemoryViT(backbone), [folder / "b.png"], base=True, top=1)
    assert found.rows[0].task == "base"
    assert found.rows[0].ranking[0][0] in "01234"
    with pytest.raises(MemtokError, match="a task"):
        memtok.predict(memtok.MemoryViT(backbone), [folder])


def test_an_unreadable_image_is_named(model: memtok.MemoryViT, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    bad = folder / "deep" / "bad.png"
    bad.write_bytes(b"no picture at all")
    with pytest.raises(MemtokError, match=r"bad\.png"):
        memtok.predict(model, [folder], on_bad_image="fail")
    seen: list[tuple[int, int]] = []
    with caplog.at_level(logging.WARNING, "memtok"):
        found = memtok.predict(model, [folder], batch_size=2, progress=lambda done, total: seen.append((done, total)))
    assert "left out: 1 (1 not an image that Pillow can read)" in caplog.text
    assert found.left_out == ((str(bad), "not an image that Pillow can read"),)
    assert found.skipped == (str(bad),)
    assert found.to_json()["skipped"] == [str(bad)]
    assert found.to_json()["left_out"] == [{"path": str(bad), "reason": "not an image that Pillow can read"}]
    assert len(found.rows) == 10
    assert seen[-1] == (6, 6)


def test_only_bad_images(model: memtok.MemoryViT, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"")
    found = memtok.predict(model, [tmp_path], on_bad_image="skip")
    assert found.rows == ()
    assert len(found.skipped) == 1


def test_finding_images(folder: Path) -> None:
    twice, left_out = find_images([folder / "b.png", folder, folder / "b.png"])
    assert len(twice) == 5
    assert twice[0] == str(folder / "b.png")
    assert left_out == []
    odd = folder / "picture.xyz"
    odd.write_bytes((folder / "b.png").read_bytes())
    assert find_images([odd]) == ([str(odd)], [])  # named by hand, its ending does not matter
    (folder.parent / "empty").mkdir()
    for paths in ([folder.parent / "empty"], [folder / "gone.png"], []):
        with pytest.raises(MemtokError) as error:
            find_images(paths)
        assert error.value.argument == "images"
        assert all(str(path) in str(error.value) for path in paths)


def test_predict_and_train_find_the_same_images(
    model: memtok.MemoryViT, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Links, circles, leavings, pipes, and what cannot be read: in a folder to predict, and as a class to train on."""
    outside = tmp_path / "outside"
    (outside / "more").mkdir(parents=True)
    for path in (outside / "x.png", outside / "more" / "y.png", outside / "z.png"):
        Image.new("RGB", (9, 9)).save(path)
    (folder / "linked").symlink_to(outside)
    (folder / "deep" / "z.png").symlink_to(outside / "z.png")
    (folder / "deep" / "round").symlink_to(folder)
    (folder / "deep" / "up").symlink_to(tmp_path)
    (folder / "linked again").symlink_to(outside)
    (folder / "@eaDir").mkdir()
    (folder / "@eaDir" / "b.png").write_bytes((folder / "b.png").read_bytes())
    (folder / "broken.png").symlink_to("gone.png")
    (folder / "lost").symlink_to("gone")
    (folder / "self.png").symlink_to("self.png")
    (folder / "self.txt").symlink_to("self.txt")  # nobody would look for an image there
    os.mkfifo(folder / "pipe.png")
    (folder / "closed").mkdir()
    scan = os.scandir

    def scandir(path: str | Path) -> object:
        if Path(path) == folder / "closed":  # root may read any folder, so permissions cannot be tested
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    inside = ["a.jpg", "b.png", "deep/c.PNG", "deep/d.bmp", "deep/z.png", "grey.png"]
    expected = [*inside, "linked/more/y.png", "linked/x.png", "linked/z.png"]
    lost = {
        "broken.png": "broken link",
        "closed": "folder: permission denied",
        "lost": "broken link",
        "pipe.png": "named pipe",
        "self.png": os.strerror(errno.ELOOP).lower(),
    }
    found = memtok.predict(model, [folder], top=1)
    assert [row.path for row in found.rows[::2]] == [str(folder / name) for name in expected]
    assert dict(found.left_out) == {str(folder / name): reason for name, reason in lost.items()}
    with pytest.raises(MemtokError, match=r"broken\.png \(broken link\)"):
        memtok.predict(model, [folder], on_bad_image="fail")

    classes = tmp_path / "classes"
    (classes / "other").mkdir(parents=True)
    for number in range(2):
        Image.new("RGB", (9, 9)).save(classes / "other" / f"{number}.png")
    (classes / "photos").symlink_to(folder)
    data = memtok.open_data(f"folder:{classes}", data_dir=tmp_path / "data", on_bad_image="skip")
    names = sorted(name for part in (data.train, data.validation) for name in part.identities)
    assert [name for name in names if name.startswith("photos/")] == [f"photos/{name}" for name in expected]
    # The folder that is closed is known by its own name only here, not by that of the link.
    assert {Path(one.path).name: one.reason for one in data.left_out} == {
        name: reason for name, reason in lost.items() if name != "closed"
    }
    with pytest.raises(MemtokError, match="found 4"):
        memtok.open_data(f"folder:{classes}", data_dir=tmp_path / "data")


def test_one_image_does_not_take_its_batch_along(
    model: memtok.MemoryViT, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it fails behind the decoder."""
    resize = Image.Image.resize

    def tired(image: Image.Image, *arguments: object, **options: object) -> Image.Image:
        if image.size == (50, 33):
            raise MemoryError
        return resize(image, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Image.Image, "resize", tired)
    found = memtok.predict(model, [folder])
    assert len(found.rows) == 2 * 4
    assert found.left_out == ((str(folder / "grey.png"), "does not fit into memory"),)


def test_a_picture_that_would_blow_up_is_answered(model: memtok.MemoryViT, folder: Path) -> None:
    Image.new("1", (60_000, 1)).save(folder / "thin.png")
    assert (folder / "thin.png").stat().st_size < 300
    assert len(memtok.predict(model, [folder]).rows) == 2 * 6


def test_named_images_that_cannot_be_read_are_left_out(model: memtok.MemoryViT, folder: Path) -> None:
    (folder / "broken.png").symlink_to("gone.png")
    found = memtok.predict(model, [folder / "broken.png", folder / "b.png"], top=1)
    assert [row.path for row in found.rows] == [str(folder / "b.png")] * 2
    assert found.skipped == (str(folder / "broken.png"),)


def test_a_hidden_folder_that_is_named_is_looked_at(folder: Path) -> None:
    assert len(find_images([folder / "deep" / ".hidden"])[0]) == 1


def test_wrong_arguments(model: memtok.MemoryViT, folder: Path) -> None:
    for wrong in ({"top": 0}, {"batch_size": 0}, {"on_bad_image": "ignore"}):
        with pytest.raises(MemtokError) as caught:
            memtok.predict(model, [folder], **wrong)  # type: ignore[arg-type]
        assert caught.value.argument == next(iter(wrong))


def test_training_mode_is_left_as_found(model: memtok.MemoryViT, folder: Path) -> None:
    model.train()
    memtok.predict(model, [folder / "b.png"])
    assert model.tasks[0].training
    model.eval()


def test_unknown_below(model: memtok.MemoryViT, folder: Path, tmp_path: Path) -> None:
    plain = memtok.predict(model, folder, top=2)
    assert all(row.answer == row.ranking[0][0] for row in plain.rows)
    assert plain.to_json()["unknown_below"] == {}
    pets = sorted(row.ranking[0][1] for row in plain.rows if row.task == "pets")
    between = (pets[1] + pets[2]) / 2  # two of the five images are less probable

    found = memtok.predict(model, folder, top=2, unknown_below={"pets": between})
    assert [row.ranking for row in found.rows] == [row.ranking for row in plain.rows]
    assert sum(row.unknown for row in found.rows if row.task == "pets") == 2
    assert not any(row.unknown for row in found.rows if row.task == "cars")
    for row in found.rows:
        assert row.answer == (None if row.unknown else row.ranking[0][0])

    stored = json.loads(json.dumps(found.to_json()))
    assert stored["unknown_below"] == {"pets": between}
    answers = [image["answers"]["pets"] for image in stored["images"]]
    assert answers == [row.answer for row in found.rows if row.task == "pets"]
    assert answers.count(None) == 2

    found.write_csv(tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["unknown"] == "true" for row in rows] == [row.unknown for row in found.rows for _ in range(2)]

    assert all(row.unknown for row in memtok.predict(model, folder, unknown_below=1).rows)
    assert not any(row.unknown for row in memtok.predict(model, folder, unknown_below=0.0).rows)


def test_wrong_thresholds(model: memtok.MemoryViT, folder: Path) -> None:
    for wrong in (1.5, -0.1, float("nan"), True, "0.5", {"dogs": 0.5}, {"pets": 2}):
        with pytest.raises(MemtokError) as caught:
            memtok.predict(model, folder, unknown_below=wrong)  # type: ignore[arg-type]
        assert caught.value.argument == "unknown_below"
