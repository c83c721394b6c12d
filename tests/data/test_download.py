"""Downloads: whole, cut short, damaged, refused, interrupted; nothing is lost and one line says what to do."""

from __future__ import annotations

import re
import shutil
import socket
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torchvision.datasets.utils

from memtok.data import open_data
from memtok.data.download import one_at_a_time
from memtok.errors import MemtokError
from tests.data import fakes
from tests.data.fakes import Server

ARCHIVES = {
    "cifar10": "cifar-10-python.tar.gz",
    "cifar100": "cifar-100-python.tar.gz",
    "inaturalist2017": "2017.tgz",
    "sun397": "SUN397.tar.gz",
    "places365": "val_256.tar",
}
OFFERED = {**ARCHIVES, "inaturalist2017": "train_val_images.tar.gz"}
Publish = Callable[[str], None]


@pytest.fixture(params=sorted(ARCHIVES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch, server: Server) -> Publish:
    """Puts a small data set of some name on the server."""

    def put(name: str) -> None:
        if name in fakes.CIFAR:
            fakes.publish_cifar(monkeypatch, name, fakes.cifar_files(name), server)
        elif name == "inaturalist2017":
            fakes.publish_inaturalist(monkeypatch, fakes.inaturalist_files(), server)
        elif name == "sun397":
            fakes.publish_sun(monkeypatch, fakes.sun_files(), server)
        else:
            fakes.publish_places(monkeypatch, server)

    return put


def refused(name: str, data_dir: Path) -> str:
    with pytest.raises(MemtokError) as caught:
        open_data(name, data_dir=data_dir)
    text = str(caught.value)
    assert "\n" not in text
    assert re.fullmatch("expected .+, found.+; .+", text), text
    return text


def test_a_data_set_is_downloaded_once(
    name: str, publish: Publish, tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(name)
    data = open_data(name, data_dir=tmp_path / "new" / "folder")
    assert len(data.test) > 0
    data.test[0]
    assert OFFERED[name] in server.asked
    # torchvision asks once for the address and once for the content.
    assert [server.asked.count(file) for file in server.files] == [2] * (3 if name == "places365" else 1)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "100%" in printed.err  # the progress of the download
    assert not list((tmp_path / "new" / "folder").glob(".memtok-unpacking-*"))
    server.asked.clear()
    assert open_data(name, data_dir=tmp_path / "new" / "folder").split == data.split
    assert server.asked == []


def test_offline_it_says_what_to_put_where(
    name: str, publish: Publish, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(name)
    fakes.everywhere_offline(monkeypatch)
    text = refused(name, tmp_path)
    assert f"in {tmp_path}, found no " in text
    assert "and the download failed ([Errno 111] Connection refused)" in text
    assert f"; put there, without unpacking: {'file' if name == 'places365' else ARCHIVES[name]}" in text
    assert re.search(rf"{re.escape(ARCHIVES[name])} \({fakes.NOWHERE}[^ ]+, MD5 [0-9a-f]{{32}}\)", text)
    # And so it works: no archive is asked for that lies there.
    for file, content in server.files.items():
        fakes.write(tmp_path, {"2017.tgz" if name == "inaturalist2017" else file: content})
    assert len(open_data(name, data_dir=tmp_path).test) > 0


def test_a_download_that_ends_early_is_named_and_made_up_for(
    name: str, publish: Publish, tmp_path: Path, server: Server
) -> None:
    publish(name)
    server.cut[OFFERED[name]] = 100
    text = refused(name, tmp_path)
    path = tmp_path / ARCHIVES[name]
    assert f"found {path} of 100 bytes, which is damaged or not whole; run again to download it anew" in text
    server.cut.clear()
    assert len(open_data(name, data_dir=tmp_path).test) > 0


def test_an_archive_that_is_damaged_is_named_without_a_network(
    name: str, publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(name)
    fakes.everywhere_offline(monkeypatch)
    fakes.write(tmp_path, {ARCHIVES[name]: b"part"})
    text = refused(name, tmp_path)
    assert f"found {ARCHIVES[name]} of 4 bytes, which is damaged or not whole, and no " in text
    assert "and the download failed" in text


def test_an_archive_of_another_content_is_never_unpacked(
    name: str, publish: Publish, tmp_path: Path, server: Server
) -> None:
    publish(name)
    server.files[OFFERED[name]] = fakes.tar({"evil.txt": b"x"}, "w" if name == "places365" else "w:gz")
    assert "which is damaged or not whole" in refused(name, tmp_path)
    assert not (tmp_path / "evil.txt").exists()


def test_a_part_of_an_archive_that_lies_there_is_replaced(
    name: str, publish: Publish, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(name)
    fakes.write(tmp_path, {ARCHIVES[name]: server.files[OFFERED[name]][:50]})
    with monkeypatch.context() as patch:
        patch.setattr(torchvision.datasets.utils, "_urlretrieve", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
        patch.setattr(torchvision.datasets.utils, "_get_redirect_url", lambda url, **_: url)
        assert "of 50 bytes, which is damaged or not whole" in refused(name, tmp_path)
    assert len(open_data(name, data_dir=tmp_path).test) > 0


def test_an_address_that_is_gone(name: str, publish: Publish, tmp_path: Path, server: Server) -> None:
    publish(name)
    server.files.clear()
    assert "and the download failed (Not Found); put there" in refused(name, tmp_path)


def test_a_server_that_does_not_answer_is_given_up(
    publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memtok.data.download.TIMEOUT", 0.1)
    publish("cifar10")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/x.tar.gz"
        monkeypatch.setattr(fakes.CIFAR["cifar10"], "url", address)
        assert "and the download failed (timed out)" in refused("cifar10", tmp_path)
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize(("name", "folder"), [("sun397", "SUN397"), ("places365", "val_256")])
def test_an_unpacking_that_was_interrupted_is_not_taken_for_whole(
    name: str, folder: str, publish: Publish, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(name)
    original = tarfile.TarFile._extract_one  # type: ignore[attr-defined]

    def interrupted(self: tarfile.TarFile, entry: tarfile.TarInfo, *arguments: object, **more: object) -> None:
        original(self, entry, *arguments, **more)
        if entry.name.startswith(folder):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "_extract_one", interrupted)
        with pytest.raises(KeyboardInterrupt):
            open_data(name, data_dir=tmp_path)
    text = refused(name, tmp_path)
    assert f"found it partly unpacked, for that was interrupted; delete {tmp_path / folder} and" in text
    shutil.rmtree(tmp_path / folder)
    (tmp_path / f".memtok-unpacking-{folder}").unlink()
    server.asked.clear()
    assert len(open_data(name, data_dir=tmp_path).test) > 0
    assert ARCHIVES[name] not in server.asked  # the archive stayed


def test_processes_download_one_after_the_other(name: str, publish: Publish, tmp_path: Path, server: Server) -> None:
    publish(name)
    opened: list[int] = []
    thread = threading.Thread(target=lambda: opened.append(len(open_data(name, data_dir=tmp_path).test)))
    with one_at_a_time(tmp_path):  # as if another process downloaded
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        assert server.asked == []
    thread.join(30)
    assert opened


def test_a_damaged_batch_is_unpacked_anew(publish: Publish, tmp_path: Path, server: Server) -> None:
    publish("cifar10")
    data = open_data("cifar10", data_dir=tmp_path)
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    whole = batch.read_bytes()
    batch.write_bytes(whole[:-1])
    server.asked.clear()
    assert open_data("cifar10", data_dir=tmp_path).split == data.split
    assert batch.read_bytes() == whole
    assert server.asked == []


def test_a_data_folder_that_cannot_be_written(publish: Publish, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    publish("sun397")
    publish("cifar10")
    assert refused("sun397", tmp_path / "file").startswith("expected a data folder that can be written, found")
    assert "; make room or choose another data folder" in refused("cifar10", tmp_path / "file")
