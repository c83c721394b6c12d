"""folder:PATH in all its layouts, and the one-line errors for what is none."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest
from PIL import Image

from memtok.data import DataSource, UnreadableImageError, open_data
from memtok.data.folders import natural_key
from memtok.data.splits import SPLIT_FILE
from memtok.errors import MemtokError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is written into the user's own cache."""
    monkeypatch.setenv("MEMTOK_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    return tmp_path / "photos"


def fill(folder: Path, count: int = 5, ending: str = "png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(folder / f"{number}.{ending}")


def opened(root: Path, **options: object) -> DataSource:
    return open_data(f"folder:{root}", **options)  # type: ignore[arg-type]


def refused(root: Path | str, *found: str, **options: object) -> str:
    """The error of opening a folder, which has each of these texts in it."""
    with pytest.raises(MemtokError) as caught:
        open_data(f"folder:{root}", **options)  # type: ignore[arg-type]
    text = str(caught.value)
    assert all(each in text for each in found), text
    assert "\n" not in text
    assert re.fullmatch("expected .+, found .+; .+", text) or "which is none" in text, text
    return text


def test_class_folders_are_split_and_the_split_is_written(root: Path) -> None:
    for name in ("class10", "class2", "Class1"):
        fill(root / name, 10)
    data = opened(root)
    assert data.classes == ("Class1", "class2", "class10")
    assert (data.name, data.spec, data.flip, data.skipped) == ("photos", f"folder:{root}", True, ())
    assert (len(data.train), len(data.validation)) == (24, 6)
    assert data.test is data.validation
    assert (data.split["kind"], data.split["seed"], data.split["fraction"]) == ("drawn", 0, 0.2)
    names = set(data.train.identities) | set(data.validation.identities)
    assert names == {f"{name}/{number}.png" for name in data.classes for number in range(10)}
    assert all(
        data.classes[label] == name.split("/")[0]
        for name, label in zip(data.train.identities, data.train.labels, strict=True)
    )
    picture, label = data.train[0]
    assert picture.getpixel((0, 0)) == (int(Path(data.train.identity(0)).stem), 0, 0)
    assert label == 0
    assert opened(root).split == data.split
    content = json.loads((root / SPLIT_FILE).read_text())
    assert content["validation"] == sorted(data.validation.identities)


def test_training_and_evaluation_see_one_split(root: Path) -> None:
    # Fault 3 of the reproduction: two seeds, two splits, validation images that had been trained on.
    for name in ("a", "b"):
        fill(root / name, 10)
    training = opened(root, seed=4)
    evaluation = opened(root)
    assert evaluation.split_digest == training.split_digest
    refused(root, "expected seed 4", "found 1", seed=1)
    (root / SPLIT_FILE).unlink()
    assert opened(root, seed=1).split_digest != training.split_digest


def test_a_moved_folder_keeps_its_split(root: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        fill(root / name, 10)
    first = opened(root, seed=4)
    root.rename(tmp_path / "elsewhere")
    assert opened(tmp_path / "elsewhere").split_digest == first.split_digest


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Val"])
def test_given_parts(root: Path, name: str) -> None:
    for part, count in (("train", 4), (name, 2), ("test", 3)):
        for label in ("a", "b"):
            fill(root / part / label, count)
    data = opened(root)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [8, 4, 6]
    assert data.train.identity(0) == "train/a/0.png"
    assert data.test.identity(5) == "test/b/2.png"
    assert (data.split["kind"], data.split["seed"]) == ("folders", None)
    assert not (root / SPLIT_FILE).exists()


def test_train_and_test_without_val(root: Path) -> None:
    for part in ("train", "test"):
        for label in ("a", "b"):
            fill(root / part / label, 5)
    data = opened(root)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [8, 2, 10]
    assert all(name.startswith("train/") for name in data.validation.identities)
    assert all(name.startswith("test/") for name in data.test.identities)


def test_train_and_val_without_test(root: Path) -> None:
    for part in ("train", "val"):
        for label in ("a", "b"):
            fill(root / part / label, 2)
    data = opened(root)
    assert data.test is data.validation


def test_test_images_without_labels_are_left_out_aloud(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    for label in ("a", "b"):
        fill(root / "train" / label)
    fill(root / "test")
    with caplog.at_level(logging.WARNING, "memtok"):
        data = opened(root)
    assert data.test is data.validation
    assert "test has no class folders" in caplog.text


def test_classes_may_be_called_like_parts(root: Path) -> None:
    for name in ("train", "bus", "test"):
        fill(root / name)
    assert opened(root).classes == ("bus", "test", "train")


def test_what_lies_beside_the_images_is_ignored(root: Path) -> None:
    for name in ("a", "b"):
        fill(root / name)
        (root / name / "notes.txt").write_text("no image")
        (root / name / "._0.png").write_text("what macOS leaves behind")
    fill(root / ".hidden")
    fill(root / "__MACOSX")
    (root / "readme.md").write_text("")
    data = opened(root)
    assert data.classes == ("a", "b")
    assert len(data.train) + len(data.validation) == 10


def test_images_lie_deeper_and_links_do_not_circle(root: Path) -> None:
    fill(root / "a" / "2024" / "may", 2)
    fill(root / "b", 2, "JPEG")
    fill(root / "b", 1, "gif")
    (root / "a" / "again").symlink_to(root / "a", target_is_directory=True)
    data = opened(root)
    names = sorted(data.train.identities + data.validation.identities)
    assert names == ["a/2024/may/0.png", "a/2024/may/1.png", "b/0.JPEG", "b/0.gif", "b/1.JPEG"]


def test_a_class_of_one_image_trains(root: Path) -> None:
    fill(root / "a", 1)
    fill(root / "b", 2)
    data = opened(root)
    assert sorted(data.train.labels.tolist()) == [0, 1]
    assert data.validation.labels.tolist() == [1]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["10", "9", "1"], ["1", "9", "10"]),
        (["b", "A", "a"], ["A", "a", "b"]),
        (["x10y2", "x10y10", "x9"], ["x9", "x10y2", "x10y10"]),
        (["01", "1", "a", "_"], ["01", "1", "_", "a"]),
    ],
)
def test_natural_order(names: list[str], expected: list[str]) -> None:
    assert sorted(names, key=natural_key) == expected
    assert sorted(set(names), key=natural_key) == expected


def test_no_folder_of_classes(root: Path, tmp_path: Path) -> None:
    refused("", "found 'folder:'")
    refused(tmp_path / "nowhere", "found nothing at", "nowhere")
    (tmp_path / "file.zip").write_text("")
    refused(tmp_path / "file.zip", "found the file", "file.zip")
    refused(root, "found no folders")
    fill(root, 2)
    refused(root, "found images but no folders")
    fill(root / "cats")
    refused(root, "found only 'cats'")
    (root / "dogs").mkdir()
    (root / "dogs" / "notes.txt").write_text("")
    refused(root, "found none in", "dogs")
    assert not (root / SPLIT_FILE).exists()


def test_parts_that_do_not_fit(root: Path) -> None:
    for label in ("a", "b"):
        fill(root / "val" / label)
    refused(root, "expected train/", "found none")
    (root / "train").mkdir()
    refused(root, "train, found no folders")
    for label in ("a", "c", "d"):
        fill(root / "train" / label)
    refused(root, "found no 'c' (2 missing, 1 unknown)")
    for label in ("c", "d"):
        fill(root / "val" / label)
    refused(root, "found 'b' too (0 missing, 1 unknown)")
    fill(root / "train" / "b")
    (root / "test").mkdir()
    refused(root, "test, found none")
    (root / "test").rmdir()
    (root / "valid").mkdir()
    refused(root, "val/ and valid/")


@pytest.mark.parametrize("inside", [[], ["a", "b"]])
def test_an_empty_validation_set(root: Path, inside: list[str]) -> None:
    for label in ("a", "b"):
        fill(root / "train" / label)
    (root / "val").mkdir()
    for label in inside:
        (root / "val" / label).mkdir()
    refused(root, "val, found none")


def test_nothing_to_validate_on(root: Path) -> None:
    for label in ("a", "b"):
        fill(root / label, 1)
    refused(root, "to validate on", "found none")


def test_a_class_whose_training_images_are_gone(root: Path) -> None:
    for label in ("a", "b"):
        fill(root / label, 6)
    data = opened(root)
    for name in data.train.identities:
        if name.startswith("a/"):
            (root / name).unlink()
    refused(root, "training images", "none of 'a'")


def broken(root: Path) -> list[Path]:
    for label in ("a", "b"):
        fill(root / label, 6)
    bad = [root / "a" / "2.png", root / "b" / "9.jpg"]
    for path in bad:
        path.write_bytes(b"no image")
    return bad


def test_fail_names_the_first_bad_image_and_the_count(root: Path) -> None:
    bad = broken(root)
    calls: list[tuple[int, int]] = []
    text = refused(
        root,
        "found 2",
        progress=lambda done, count: calls.append((done, count)),
    )
    assert str(bad[0]) in text
    assert (calls[0], calls[-1]) == ((0, 13), (13, 13))
    bad[0].unlink()
    assert str(bad[1]) in refused(root, on_bad_image="fail")
    assert not (root / SPLIT_FILE).exists()


def test_skip_leaves_them_out_and_says_so(root: Path) -> None:
    bad = broken(root)
    data = opened(root, on_bad_image="skip")
    assert data.skipped == tuple(str(path) for path in bad)
    assert len(data.train) + len(data.validation) == 11
    for part in (data.train, data.validation):
        assert not {"a/2.png", "b/9.jpg"} & set(part.identities)
    assert opened(root, on_bad_image="skip").split == data.split
    # Once mended they join, and nothing else moves.
    for path in bad:
        path.unlink()
    fill(root / "a", 6)
    after = opened(root)
    assert after.skipped == ()
    assert set(data.train.identities) <= set(after.train.identities)
    assert set(data.validation.identities) <= set(after.validation.identities)


def test_a_class_of_bad_images_only(root: Path) -> None:
    fill(root / "a")
    (root / "b").mkdir()
    (root / "b" / "0.png").write_bytes(b"no")
    refused(root, "none for 'b'", on_bad_image="skip")


def test_an_image_that_breaks_later_is_reported_by_path(root: Path) -> None:
    for label in ("a", "b"):
        fill(root / label)
    data = opened(root)
    (root / data.train.identity(0)).write_bytes(b"no")
    with pytest.raises(UnreadableImageError) as error:
        data.train[0]
    assert error.value.path == str(root / data.train.identity(0))


def test_the_look_is_remembered_in_the_cache(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memtok.data.file_cache.FRESH_SECONDS", -3600.0)
    for label in ("a", "b"):
        fill(root / label)
    opened(root)
    assert len(list((cache / "checked").iterdir())) == 1
    monkeypatch.setattr("memtok.data.images._decode", None)
    assert len(opened(root).train) == 8


# Parts by their names and their structure


def parts_of(root: Path) -> list[int]:
    data = opened(root)
    assert data.classes == ("a", "b")
    return [len(part) for part in (data.train, data.validation, data.test)]


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        ("train", "val", "test"),
        ("Training", "valid", "Testing"),
        ("TRAIN", "validation", "eval"),
        ("training", "dev", "evaluation"),
        ("train_set", "val_set", "test_set"),
        ("images_train", "images_val", "images_test"),
        ("train-images", "dev-images", "eval-images"),
        ("train2017", "val2017", "test2017"),
        ("my train data", "my.valid.data", "my-test data"),
    ],
)
def test_the_names_of_parts(root: Path, train: str, validation: str, test: str) -> None:
    for part, count in ((train, 4), (validation, 2), (test, 3)):
        for label in ("a", "b"):
            fill(root / part / label, count)
    assert parts_of(root) == [8, 4, 6]


@pytest.mark.parametrize("name", ["testing", "eval", "evaluation", "test_set", "Test"])
def test_a_test_part_of_any_name_is_read_beside_train(root: Path, name: str) -> None:
    for part in ("train", name):
        for label in ("a", "b"):
            fill(root / part / label, 5)
    assert parts_of(root) == [8, 2, 10]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("train", "training"), "train/ and training/"),
        (("train", "val", "dev"), "dev/ and val/"),
        (("train", "test", "evaluation"), "evaluation/ and test/"),
        (("images_train", "images_val", "images_dev"), "images_dev/ and images_val/"),
    ],
)
def test_two_folders_of_one_part_are_refused(root: Path, names: tuple[str, ...], found: str) -> None:
    for name in names:
        for label in ("a", "b"):
            fill(root / name / label, 2)
    refused(root, found)


@pytest.mark.parametrize(
    "names",
    [
        ("running", "swimming", "training"),
        ("driving", "test"),
        ("bus stop", "test tube", "train station"),
        ("test tube", "train station"),
        ("dev", "ops", "val"),
        ("bus", "test", "train"),
    ],
)
def test_a_folder_of_images_is_a_class_whatever_its_name(root: Path, names: tuple[str, ...]) -> None:
    for name in names:
        fill(root / name)
    assert opened(root).classes == names


def test_a_folder_of_images_and_folders_is_a_class(root: Path) -> None:
    fill(root / "training", 2)
    for name in ("training/red", "training/blue", "test/red", "test/green", "bus"):
        fill(root / name, 2)
    data = opened(root)
    assert data.classes == ("bus", "test", "training")
    assert len(data.train) + len(data.validation) == 2 + 4 + 6
    fill(root / "test/blue", 2)  # now both may be parts, with images that lie in the wrong place
    refused(root, "test/ and training/")


def test_classes_named_like_parts_with_folders_of_their_own(root: Path) -> None:
    for name in ("train station/london", "train station/paris", "test tube/glass", "bus/red"):
        fill(root / name, 3)
    data = opened(root)
    assert data.classes == ("bus", "test tube", "train station")
    assert len(data.train) + len(data.validation) == 12


@pytest.mark.parametrize("names", [("Trainset", "Testset"), ("fold1", "fold2", "fold3"), ("images", "test")])
def test_parts_under_unknown_names_are_refused(root: Path, names: tuple[str, ...]) -> None:
    for name in names:
        for label in ("a", "b"):
            fill(root / name / label, 2)
    assert "both with the folders a, b" in refused(root)


@pytest.mark.parametrize("beside", ["trn/preview.png", "trn/more/1.png", "unlabeled/1.png", "tst/other/1.png"])
def test_parts_under_unknown_names_are_refused_whatever_lies_beside(root: Path, beside: str) -> None:
    for name in ("trn", "tst"):
        for label in ("a", "b"):
            fill(root / name / label, 2)
    fill(root / beside.rpartition("/")[0], 1)
    assert "both with the folders a, b" in refused(root)


def test_what_may_be_a_class_beside_train_is_refused(root: Path) -> None:
    """`training` may be a class with folders of its own, or the part beside which images lie that belong elsewhere."""
    for name in ("training/2023", "training/2024", "running", "swimming"):
        fill(root / name, 2)
    refused(root, "beside training/", "found running/")


def test_what_lies_beside_the_parts_is_not_read_and_named(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    for part in ("train", "val", "more"):
        for label in ("a", "b"):
            fill(root / part / label, 4)
    fill(root / "test1", 1)
    (root / "logs").mkdir()
    with caplog.at_level(logging.WARNING, "memtok"):
        assert parts_of(root) == [8, 8, 8]
    assert "not read: more/, test1/" in caplog.text


@pytest.mark.parametrize(
    "name",
    ["@eaDir", "__MACOSX", ".ipynb_checkpoints", "lost+found", "$RECYCLE.BIN", ".git", ".thumbnails", "#recycle"],
)
def test_leavings_are_no_classes_and_no_images(root: Path, name: str) -> None:
    for label in ("a", "b"):
        fill(root / label)
        fill(root / label / name)
        (root / label / "Thumbs.db").write_bytes(b"no image")
    fill(root / name)
    assert parts_of(root) == [8, 2, 2]
    for part in ("train", "test"):
        (root / part).mkdir()
        fill(root / part / name)
        for label in ("a", "b"):
            (root / label).rename(root / part / label) if part == "train" else fill(root / part / label, 1)
    assert parts_of(root) == [8, 2, 2]


# Names of classes

NFC, NFD = "caf\u00e9", "cafe\u0301"


def test_two_unicode_forms_of_a_name_are_one_class(root: Path) -> None:
    fill(root / NFC, 3)
    fill(root / NFD, 2, "gif")
    fill(root / "tea", 5)
    if len(list(root.iterdir())) < 3:
        pytest.skip("this file system holds the two forms for one name")
    data = opened(root)
    assert data.classes == (NFC, "tea")
    assert sorted((*data.train.labels, *data.validation.labels)) == [0] * 5 + [1] * 5


def test_parts_match_in_any_unicode_form(root: Path) -> None:
    for part, name in (("train", NFD), ("test", NFC)):
        fill(root / part / name)
        fill(root / part / "tea")
    data = opened(root)
    assert data.classes == (NFC, "tea")
    assert len(data.test) == 10
    assert data.only([NFD, "tea"]).classes == (NFC, "tea")


@pytest.mark.parametrize(
    "name", ["a\nb", "a\rb", "a\tb", "a\x1bb", "a\u2028b", "a\x85b", " ", b"a\xff".decode("utf-8", "surrogateescape")]
)
def test_class_names_that_are_no_line_of_text_are_refused(root: Path, name: str) -> None:
    fill(root / name)
    fill(root / "b")
    refused(root, "class names")


def test_names_that_differ_in_capitals_are_two_classes_and_said(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("cat", "Cat"):
        fill(root / name)
    if len(list(root.iterdir())) < 2:
        pytest.skip("this file system does not tell capitals apart")
    with caplog.at_level(logging.WARNING, "memtok"):
        assert opened(root).classes == ("Cat", "cat")
    assert "differ in capitals only: Cat, cat" in caplog.text
