"""The data sets of the paper: their layouts, labels and splits, on small ones that look like them."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision.datasets import CIFAR10, Places365

from memtok.data import DATASETS, DataSource, UnreadableImageError, open_data
from memtok.data.choices import AUGMENTATIONS
from memtok.data.cifar import read_pickle
from memtok.errors import MemtokError
from tests.data import fakes
from tests.data.fakes import SCENES, SPECIES, Server


def placed(name: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    """A small data set of this name, unpacked in `data_dir`, without its official lists if they are published apart."""
    if name in fakes.CIFAR:
        files = fakes.cifar_files(name)
        fakes.publish_cifar(monkeypatch, name, files, server)
        fakes.write(data_dir / fakes.CIFAR[name].base_folder, files)
    elif name == "inaturalist2017":
        fakes.write(data_dir / "2017", fakes.inaturalist_files())
    elif name == "sun397":
        fakes.write(data_dir, fakes.sun_files())
    else:
        fakes.publish_places(monkeypatch, server)
        open_data(name, data_dir=data_dir)
        server.asked.clear()


NAMES = ("cifar10", "cifar100", "inaturalist2017", "places365", "sun397")


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server) -> Callable[[str], Path]:
    def put(name: str) -> Path:
        placed(name, tmp_path, monkeypatch, server)
        return tmp_path

    return put


def opened(name: str, data_dir: Path, **options: Any) -> DataSource:
    return open_data(name, data_dir=data_dir, **options)


def refused(name: str, data_dir: Path, message: str, **options: Any) -> str:
    with pytest.raises(MemtokError, match=message) as caught:
        open_data(name, data_dir=data_dir, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def everything(data: DataSource) -> list[str]:
    return [name for part in (data.train, data.validation, data.test) for name in part.identities]


def test_the_rows_say_how_the_images_are_varied() -> None:
    assert all(row.augment in AUGMENTATIONS for row in DATASETS.values())
    crops = {name for name, row in DATASETS.items() if row.augment == "crop"}
    assert crops == {"digits", "mnist", "cifar100"}
    assert {name for name, row in DATASETS.items() if not row.flip} == {"digits", "mnist"}


def test_data_that_are_there_are_used(name: str, place: Callable[[str], Path], server: Server) -> None:
    data = opened(name, place(name))
    assert (data.spec, data.name, data.skipped) == (name, name, ())
    assert (data.augment, data.flip) == (DATASETS[name].augment, DATASETS[name].flip)
    assert server.asked == []
    for part in (data.train, data.validation, data.test):
        picture, label = part[len(part) - 1]
        assert picture.mode == "RGB"
        assert label == part.labels[-1]
    copy = pickle.loads(pickle.dumps(data))
    assert copy.split == data.split


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "inaturalist2017", "sun397"])
def test_classes_labels_and_pictures_are_those_of_torchvision(name: str, place: Callable[[str], Path]) -> None:
    folder = place(name)
    theirs = fakes.open_with_torchvision(name, folder)
    data = opened(name, folder, split=None if name in fakes.CIFAR else "80-20")
    known = getattr(theirs, "classes", None) or theirs.all_categories
    assert data.classes == tuple(known)
    if name in fakes.CIFAR:
        expected = {f"train/{number}": number for number in range(len(theirs))}
    elif name == "sun397":
        expected = {str(path.relative_to(folder / "SUN397")): n for n, path in enumerate(theirs._image_files)}
    else:
        expected = {f"{theirs.all_categories[label]}/{file}": n for n, (label, file) in enumerate(theirs.index)}
    seen = 0
    for part in (data.train, data.validation, data.test):
        for index in range(len(part)):
            if part.identity(index) in expected:
                picture, label = theirs[expected[part.identity(index)]]
                assert label == part.labels[index]
                assert np.array_equal(np.asarray(picture), np.asarray(part[index][0]))
                seen += 1
    assert seen == len(theirs)


@pytest.mark.parametrize(
    ("name", "counts"),
    [("cifar10", (54, 6, 20)), ("cifar100", (54, 6, 20)), ("places365", (20, 4, 8))],
)
def test_official_parts(name: str, counts: tuple[int, int, int], place: Callable[[str], Path]) -> None:
    folder = place(name)
    data = opened(name, folder)
    assert data.split["kind"] == "official"
    assert data.split == opened(name, folder, split="official").split
    assert (len(data.train), len(data.validation), len(data.test)) == counts
    prefix = "val_256/" if name == "places365" else "test/"
    assert all(identity.startswith(prefix) for identity in data.test.identities)
    assert not any(identity.startswith(prefix) for identity in (*data.train.identities, *data.validation.identities))


def test_places_has_the_numbers_of_its_list_of_categories(place: Callable[[str], Path]) -> None:
    data = opened("places365", place("places365"))
    assert data.classes == SCENES[::-1]
    for index in range(len(data.train)):
        assert data.classes[data.train.labels[index]] in data.train.identity(index)


@pytest.mark.parametrize("place_of_lists", [".", "train_val2017", "2017"])
def test_official_lists_of_inaturalist(place_of_lists: str, place: Callable[[str], Path]) -> None:
    folder = place("inaturalist2017")
    assert opened("inaturalist2017", folder).split["kind"] == "80-20"
    text = refused("inaturalist2017", folder, "expected the official split of inaturalist2017", split="official")
    assert "train2017.json and val2017.json" in text
    assert text.endswith("put them there, or use the 80-20 split")
    names = sorted(fakes.inaturalist_files())
    fakes.write(folder / place_of_lists, fakes.inaturalist_lists(names))
    data = opened("inaturalist2017", folder)
    assert data.split["kind"] == "official"
    assert data.test.identities == sorted(names[::5])
    assert len(data.classes) == len(SPECIES)
    assert sorted(everything(data)) == names


def test_official_lists_of_sun(place: Callable[[str], Path]) -> None:
    folder = place("sun397")
    assert opened("sun397", folder).split["kind"] == "80-20"
    refused("sun397", folder, r"Training_01\.txt and Testing_01\.txt", split="official")
    fakes.write(folder / "SUN397", fakes.sun_lists(fakes.sun_files()))
    data = opened("sun397", folder)
    assert data.split["kind"] == "official"
    assert (len(data.train) + len(data.validation), len(data.test)) == (14, 13)
    assert data.classes == ("abbey", "airport/indoor", "bar", "zoo")


def test_lists_that_do_not_fit_are_named(place: Callable[[str], Path]) -> None:
    folder = place("inaturalist2017")
    names = sorted(fakes.inaturalist_files())
    fakes.write(folder, fakes.inaturalist_lists([*names, "Aves/Anas acuta/gone.jpg"]))
    refused("inaturalist2017", folder, r"val2017\.json.* 1 of them missing")
    (folder / "val2017.json").write_text("[]")
    refused("inaturalist2017", folder, r"COCO.*val2017\.json")


def test_lists_that_overlap_are_refused(place: Callable[[str], Path]) -> None:
    folder = place("inaturalist2017")
    names = sorted(fakes.inaturalist_files())
    lists = fakes.inaturalist_lists(names)
    fakes.write(folder, {"val2017.json": lists["val2017.json"], "train2017.json": lists["val2017.json"]})
    count = len(names[::5])
    message = rf"expected no image in both lists \(.*\), found {count}, such as {names[0]}; get them again"
    refused("inaturalist2017", folder, message)
    (folder / "val2017.json").write_text("[" * 100_000)
    refused("inaturalist2017", folder, "COCO")
    folder = place("sun397")
    lists = fakes.sun_lists(fakes.sun_files())
    both = lists["Training_01.txt"].splitlines()[0]
    fakes.write(folder / "SUN397", lists | {"Testing_01.txt": lists["Testing_01.txt"] + b"\n" + both})
    refused("sun397", folder, rf"found 1, such as {both.decode().lstrip('/')}; get them again")


@pytest.mark.parametrize("line", ["/a/../../outside", "..", "/a/ab\0bey", "a//abbey", "/a/abbey", "."])
def test_names_of_classes_lead_to_folders_of_their_own(line: str, place: Callable[[str], Path]) -> None:
    folder = place("sun397")
    fakes.write(folder / "outside", {"sun_1.jpg": fakes.jpeg(1)})
    with (folder / "SUN397/ClassName.txt").open("a") as stream:
        stream.write(f"\n{line}\n")
    refused("sun397", folder, "names of folders")


def test_eighty_twenty_is_stratified_and_covers_everything(name: str, place: Callable[[str], Path]) -> None:
    folder = place(name)
    data, official = opened(name, folder, split="80-20"), opened(name, folder)
    assert data.split["kind"] == "80-20"
    names = everything(data)
    assert len(set(names)) == len(names)
    assert sorted(names) == sorted(everything(official))
    whole = np.concatenate([data.train.labels, data.validation.labels, data.test.labels])
    for label, count in enumerate(np.bincount(whole)):
        assert (data.test.labels == label).sum() == round(0.2 * count)
        assert (data.validation.labels == label).sum() == max(1, round(0.1 * (count - round(0.2 * count))))
    assert data.test.labels.tolist() != official.test.labels.tolist() or official.split_kind == "80-20"


@pytest.mark.twice
def test_eighty_twenty_follows_from_its_seed_in_every_process(place: Callable[[str], Path]) -> None:
    folder = place("inaturalist2017")
    here = opened("inaturalist2017", folder, split="80-20")
    shutil.rmtree(folder / "listings", ignore_errors=True)
    code = (
        "import sys, random; random.seed(9); from memtok.data import open_data; "
        f"print(open_data('inaturalist2017', data_dir={str(folder)!r}, split='80-20').split_digest)"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == here.split_digest
    other = opened("inaturalist2017", folder, split="80-20", seed=1)
    assert set(other.test.identities) != set(here.test.identities)
    # What it drew at first. It never changes: what one version trained on, the next must not test on.
    assert here.split_digest == "sha256:2d77c38e9948980852ee54535b053d44d9e71753d171799aae55adb5b1223193"


def test_digits_and_mnist_have_an_eighty_twenty_split_too() -> None:
    data = open_data("digits", split="80-20")
    assert (len(data.train), len(data.validation), len(data.test)) == (1295, 143, 359)
    assert data.split["digest"] != open_data("digits").split["digest"]


def test_images_are_read_when_they_are_asked_for(place: Callable[[str], Path]) -> None:
    folder = place("inaturalist2017")
    broken = folder / "2017" / SPECIES[0] / "3.jpg"
    broken.write_bytes(b"no picture")
    data = opened("inaturalist2017", folder, split="80-20")
    part, index = next(
        (part, part.identities.index(f"{SPECIES[0]}/3.jpg"))
        for part in (data.train, data.validation, data.test)
        if f"{SPECIES[0]}/3.jpg" in part.identities
    )
    with pytest.raises(UnreadableImageError) as error:
        part[index]
    assert error.value.path == str(broken)
    skipping = opened("inaturalist2017", folder, split="80-20", on_bad_image="skip")
    assert skipping.skipped == (str(broken),)
    # The other images stay where they were.
    assert set(skipping.test.identities) == set(data.test.identities) - {f"{SPECIES[0]}/3.jpg"}
    assert set(everything(skipping)) == set(everything(data)) - {f"{SPECIES[0]}/3.jpg"}


def test_listings_are_remembered_until_a_folder_changes(
    place: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memtok.data.file_cache.FRESH_SECONDS", -1.0)
    folder = place("sun397")
    before = opened("sun397", folder)
    looked_at: list[Path] = []
    from memtok.data import listings

    original = listings._names
    monkeypatch.setattr(listings, "_names", lambda path, pattern: looked_at.append(path) or original(path, pattern))
    assert opened("sun397", folder).split == before.split
    assert looked_at == []
    fakes.write(folder / "SUN397/b/bar", {"sun_new.jpg": fakes.jpeg(1), "notes.txt": b"", "other.jpg": fakes.jpeg(2)})
    assert len(everything(opened("sun397", folder))) == len(everything(before)) + 1
    assert looked_at == [folder / "SUN397/b/bar"]
    next((folder / "listings").iterdir()).write_text("{")  # a damaged one is done without
    assert len(everything(opened("sun397", folder))) == len(everything(before)) + 1


def test_what_is_only_partly_there_is_named(place: Callable[[str], Path]) -> None:
    folder = place("inaturalist2017")
    shutil.rmtree(folder / "2017" / SPECIES[1])
    (folder / "2017" / SPECIES[1]).mkdir()
    refused("inaturalist2017", folder, "Anaxyrus boreas")
    folder = place("sun397")
    shutil.rmtree(folder / "SUN397/b/bar")
    refused("sun397", folder, r"SUN397/b/bar \(No such")
    (folder / "SUN397/ClassName.txt").unlink()
    refused("sun397", folder, r"ClassName\.txt")
    folder = place("places365")
    (folder / "val_256/Places365_val_00000007.jpg").unlink()
    refused("places365", folder, r"00000007\.jpg.*val_256")


class Attack:
    """Its pickle makes a file when it is read the usual way."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_that_would_run_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    touched = tmp_path / "touched"
    content = pickle.dumps({"data": Attack(touched), "labels": []})
    assert "data" in pickle.loads(content)  # it works
    touched.unlink()
    files = {**fakes.cifar_files("cifar10"), "data_batch_3": content}
    fakes.publish_cifar(monkeypatch, "cifar10", files, server)  # with the right checksums even
    fakes.write(tmp_path / CIFAR10.base_folder, files)
    text = refused("cifar10", tmp_path, r"data_batch_3.*(pathlib|builtins)")
    assert text.endswith("delete it and get it again")
    assert not touched.exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"\x80\x02}", b"cos\nsystem\n(S'true'\ntR.", b"cnumpy\nload\n.", b"cbuiltins\neval\n.", pickle.dumps([1])],
)
def test_other_pickles_are_refused(content: bytes) -> None:
    with pytest.raises(MemtokError, match="batch"):
        read_pickle(content, Path("batch"))


@pytest.mark.parametrize(
    "batch",
    [
        {"data": np.zeros((2, 3072), np.uint8), "labels": [0]},
        {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 3]},
        {"data": np.zeros((2, 3072), np.int32), "labels": [0, 1]},
        {"data": np.zeros((2, 3071), np.uint8), "labels": [0, 1]},
        {"labels": [0, 1]},
    ],
)
def test_batches_that_hold_something_else(
    batch: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    files = {**fakes.cifar_files("cifar10"), "test_batch": pickle.dumps(batch)}
    fakes.publish_cifar(monkeypatch, "cifar10", files, server)
    fakes.write(tmp_path / CIFAR10.base_folder, files)
    refused("cifar10", tmp_path, "test_batch")


def test_the_lists_of_places_are_checked(
    place: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    folder = place("places365")
    whole = (folder / "places365_val.txt").read_bytes()
    (folder / "places365_val.txt").write_text("Places365_val_00000000.jpg 0\n")
    assert len(opened("places365", folder).test) == 8  # unpacked anew from the archive, which is still there
    assert (folder / "places365_val.txt").read_bytes() == whole
    assert server.asked == []
    (folder / "places365_val.txt").write_text("")
    (folder / "filelist_places365-standard.tar").unlink()
    monkeypatch.setattr(Places365, "_BASE_URL", fakes.NOWHERE)
    text = refused("places365", folder, r"expected Places-365 in .*, found no places365_val.txt, and the download fail")
    assert "filelist_places365-standard.tar (http" in text
    assert "val_256.tar" not in text


def test_the_documents_name_every_data_set(root: Path) -> None:
    page, command_line = ((root / "docs" / name).read_text(encoding="utf-8") for name in ("data.md", "cli.md"))
    for name, row in DATASETS.items():
        (line,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |") and line.count("|") == 6]
        assert line.endswith(f"| {row.augment}, {'mirrored' if row.flip else 'not mirrored'} |")
        assert f"`{name}`" in command_line
