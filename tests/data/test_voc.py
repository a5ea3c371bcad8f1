"""Downloading VOC from a small local server that fails in every known way."""

import errno
import hashlib
import io
import logging
import shutil
import socket
import tarfile
import threading
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest

from dq.data.describe import describe_voc
from dq.data.download import Archive, fetch_archive
from dq.data.layout import VocBox, annotation_xml
from dq.data.voc import NAMES, fetch_voc, voc_folders
from tests.processes.file_server import Server, serving
from tests.processes.ports import free_port

LISTS = {"2007": "trainval", "2007-test": "test", "2012": "trainval"}


def make_tar(members: dict[str, bytes], link: tuple[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        if link:
            member = tarfile.TarInfo(link[0])
            member.type, member.linkname = tarfile.SYMTYPE, link[1]
            tar.addfile(member)
    return buffer.getvalue()


def voc_members(key: str) -> dict[str, bytes]:
    """Return the files of a tiny VOC archive: two images, listed in its split."""
    root = f"VOCdevkit/VOC{key[:4]}"
    ids = [f"{key[:4]}_{LISTS[key]}_{number}" for number in range(2)]
    box = VocBox(name="dog", xmin=1, ymin=2, xmax=3, ymax=4)
    members = {f"{root}/ImageSets/Main/{LISTS[key]}.txt": "\n".join(ids).encode()}
    for image_id in ids:
        members[f"{root}/JPEGImages/{image_id}.jpg"] = b"pixels" * 300
        members[f"{root}/Annotations/{image_id}.xml"] = annotation_xml(
            image_id, (8, 8), [box], database="VOC", source="flickr"
        )
    return members


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


def publish(server: Server, key: str, content: bytes) -> Archive:
    filename = f"{key}.tar"
    server.files[filename] = content
    return Archive(url=server.url(filename), filename=filename, md5=md5_of(content))


def md5_of(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


@pytest.fixture
def archives(server: Server) -> dict[str, Archive]:
    return {key: publish(server, key, make_tar(voc_members(key))) for key in LISTS}


def fetch(name: str, folder: Path, archives: dict[str, Archive]) -> Path:
    return fetch_voc(name, folder, archives=archives, num_attempts=3, backoff_s=0.01)


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("name", "keys", "years"),
    [
        ("voc2007", ["2007", "2007-test"], ["VOC2007"]),
        ("voc2012", ["2012"], ["VOC2012"]),
        ("voc0712", ["2007", "2007-test", "2012"], ["VOC2007", "VOC2012"]),
    ],
)
def test_an_edition_is_in_the_folder_that_mmdet_uses(
    tmp_path: Path,
    server: Server,
    archives: dict[str, Archive],
    name: str,
    keys: list[str],
    years: list[str],
) -> None:
    data = tmp_path / "data"
    assert fetch(name, data, archives) == data / "VOCdevkit"
    members = {member for key in keys for member in voc_members(key)}
    assert files_of(data) == members | {f"{key}.tar" for key in keys} | {".lock"}
    assert [path.name for path in voc_folders(name, data)] == years
    assert server.asked == [(f"{key}.tar", None) for key in keys]
    assert describe_voc(data / "VOCdevkit" / years[0]).num_boxes_per_class == {
        "dog": 2 * sum(key.startswith(years[0][3:]) for key in keys)
    }


def test_existing_files_are_not_downloaded_again(
    tmp_path: Path, server: Server, archives: dict[str, Archive]
) -> None:
    fetch("voc2007", tmp_path, archives)
    for archive in archives.values():
        (tmp_path / archive.filename).unlink(missing_ok=True)
    server.asked.clear()
    fetch("voc2007", tmp_path, archives)
    assert server.asked == []


def test_a_partly_unpacked_edition_is_completed(
    tmp_path: Path, server: Server, archives: dict[str, Archive]
) -> None:
    fetch("voc2012", tmp_path, archives)
    (tmp_path / "VOCdevkit/VOC2012/JPEGImages/2012_trainval_1.jpg").unlink()
    server.asked.clear()
    fetch("voc2012", tmp_path, archives)
    assert set(voc_members("2012")) <= files_of(tmp_path)
    assert server.asked == []


def test_a_cut_connection_is_resumed_where_it_broke(
    tmp_path: Path, server: Server, archives: dict[str, Archive]
) -> None:
    size = len(server.files["2012.tar"])
    server.trouble = ["cut", "503", "cut"]
    archive = archives["2012"]
    path = fetch_archive(archive, tmp_path, num_attempts=4, backoff_s=0.01)
    assert path.read_bytes() == server.files["2012.tar"]
    ranges = [asked for _, asked in server.asked]
    assert ranges == [None, f"bytes={size // 2}-", f"bytes={size // 2}-", f"bytes={size * 3 // 4}-"]
    assert files_of(tmp_path) == {"2012.tar"}


def test_the_next_call_resumes_a_partial_download(
    tmp_path: Path, server: Server, archives: dict[str, Archive]
) -> None:
    server.trouble = ["cut"]
    with pytest.raises(RuntimeError, match=r"the connection closed after \d+ of \d+ bytes"):
        fetch_archive(archives["2012"], tmp_path, num_attempts=1)
    assert files_of(tmp_path) == {"2012.tar.part"}
    fetch("voc2012", tmp_path, archives)
    assert server.asked[-1][1] == f"bytes={len(server.files['2012.tar']) // 2}-"


def test_a_server_without_ranges_sends_it_again(
    tmp_path: Path, server: Server, archives: dict[str, Archive]
) -> None:
    (tmp_path / "2012.tar.part").write_bytes(b"x" * 1000)
    server.trouble = ["no ranges"]
    fetch("voc2012", tmp_path, archives)
    assert len(server.asked) == 1


@pytest.mark.parametrize("num_bytes", [1000, 10**6])
def test_a_damaged_part_is_deleted(
    tmp_path: Path, server: Server, archives: dict[str, Archive], num_bytes: int
) -> None:
    (tmp_path / "2012.tar.part").write_bytes(b"x" * num_bytes)
    fetch("voc2012", tmp_path, archives)
    assert [asked for _, asked in server.asked] == [f"bytes={num_bytes}-", None]


def test_a_complete_part_is_used(
    tmp_path: Path, server: Server, archives: dict[str, Archive]
) -> None:
    (tmp_path / "2012.tar.part").write_bytes(server.files["2012.tar"])
    fetch("voc2012", tmp_path, archives)
    assert len(server.asked) == 1


def check_line(line: str, archive: Archive, folder: Path) -> None:
    """Check that one line names the address, the folder and the name to use by hand."""
    assert "\n" not in line
    assert archive.url in line
    assert f"into {folder} as {archive.filename}" in line


def test_a_wrong_checksum_is_refused(
    tmp_path: Path, server: Server, archives: dict[str, Archive]
) -> None:
    server.files["2012.tar"] += b"more"
    with pytest.raises(RuntimeError, match="another md5") as caught:
        fetch("voc2012", tmp_path, archives)
    check_line(str(caught.value), archives["2012"], tmp_path)
    assert len(server.asked) == 1
    assert files_of(tmp_path) == {".lock"}


@pytest.mark.parametrize(("status", "num_requests"), [(404, 1), (403, 1), (503, 3)])
def test_an_error_of_the_server_is_named(
    tmp_path: Path,
    server: Server,
    archives: dict[str, Archive],
    status: int,
    num_requests: int,
) -> None:
    server.trouble = [str(status)] * 9
    with pytest.raises(RuntimeError, match=f"the server answers {status}") as caught:
        fetch("voc2012", tmp_path, archives)
    check_line(str(caught.value), archives["2012"], tmp_path)
    assert len(server.asked) == num_requests


def test_a_refused_connection_is_tried_again_and_named(
    tmp_path: Path, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    archive = Archive(
        url=f"http://127.0.0.1:{free_port()}/2012.tar", filename="2012.tar", md5="0" * 32
    )
    with (
        caplog.at_level(logging.INFO),
        pytest.raises(RuntimeError, match="Connection refused") as caught,
    ):
        fetch("voc2012", tmp_path, {"2012": archive})
    check_line(str(caught.value), archive, tmp_path)
    assert caplog.text.count("trying again") == 2


def test_a_silent_server_times_out(tmp_path: Path, server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/2012.tar"
        archive = Archive(url=url, filename="2012.tar", md5="0" * 32)
        with pytest.raises(RuntimeError, match="timed out"):
            fetch_archive(archive, tmp_path, num_attempts=2, backoff_s=0.01, timeout_s=0.1)


def test_a_tar_put_there_by_hand_needs_no_network(
    tmp_path: Path, server: Server, archives: dict[str, Archive]
) -> None:
    (tmp_path / "2012.tar").write_bytes(server.files["2012.tar"])
    fetch("voc2012", tmp_path, archives)
    assert server.asked == []
    assert set(voc_members("2012")) <= files_of(tmp_path)


def test_a_wrong_tar_put_there_by_hand_is_refused_and_kept(
    tmp_path: Path, server: Server, archives: dict[str, Archive]
) -> None:
    (tmp_path / "2012.tar").write_bytes(b"something else")
    with pytest.raises(RuntimeError, match=r"2012\.tar is not the published file .* delete it"):
        fetch("voc2012", tmp_path, archives)
    assert (tmp_path / "2012.tar").read_bytes() == b"something else"
    assert server.asked == []


@pytest.mark.parametrize(
    "tar",
    [
        make_tar({**voc_members("2012"), "../evil.txt": b"evil"}),
        make_tar({**voc_members("2012"), "VOCdevkit/../../evil.txt": b"evil"}),
        make_tar(voc_members("2012"), link=("VOCdevkit/out", "../../../evil.txt")),
    ],
)
def test_an_unsafe_tar_is_refused_and_leaves_nothing(
    tmp_path: Path, server: Server, tar: bytes
) -> None:
    data = tmp_path / "data"
    with pytest.raises(RuntimeError, match=r"is not safe to unpack .* delete it"):
        fetch("voc2012", data, {"2012": publish(server, "2012", tar)})
    assert files_of(tmp_path) == {"data/2012.tar", "data/.lock"}


@pytest.mark.parametrize("content", [b"no tar at all", make_tar(voc_members("2012"))[:3000]])
def test_a_file_that_is_not_a_tar_is_refused(
    tmp_path: Path, server: Server, content: bytes
) -> None:
    with pytest.raises(RuntimeError, match=r"cannot be unpacked .* delete it") as caught:
        fetch("voc2012", tmp_path, {"2012": publish(server, "2012", content)})
    assert "\n" not in str(caught.value)


def test_a_tar_that_lacks_an_image_is_refused(tmp_path: Path, server: Server) -> None:
    members = voc_members("2012")
    del members["VOCdevkit/VOC2012/JPEGImages/2012_trainval_1.jpg"]
    with pytest.raises(RuntimeError, match="does not bring all of VOC2012 trainval"):
        fetch("voc2012", tmp_path, {"2012": publish(server, "2012", make_tar(members))})


def test_missing_disk_space_is_reported_before_unpacking(
    tmp_path: Path, archives: dict[str, Archive], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 99, 1))
    with pytest.raises(RuntimeError, match="has 0 MB free and needs 0 MB: free some space"):
        fetch("voc2012", tmp_path, archives)


def test_a_disk_that_fills_during_unpacking_is_named(
    tmp_path: Path, archives: dict[str, Archive], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: tarfile.TarFile, *args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "extractall", fail)
    with pytest.raises(RuntimeError, match="no space is left for"):
        fetch("voc2012", tmp_path, archives)
    assert files_of(tmp_path) == {"2012.tar", ".lock"}


class Full(io.BytesIO):
    """A file on a disk that is found full at one moment."""

    def __init__(self, moment: str) -> None:
        super().__init__()
        self.moment = moment

    def fail(self, moment: str) -> None:
        if self.moment == moment:
            raise OSError(errno.ENOSPC, "No space left on device")

    def write(self, chunk: object) -> int:
        self.fail("write")
        return len(chunk)  # type: ignore[arg-type]

    def close(self) -> None:
        super().close()
        self.fail("close")


@pytest.mark.parametrize("moment", ["open", "write", "close"])
def test_a_disk_that_fills_during_a_download_is_named_at_once(
    tmp_path: Path,
    server: Server,
    archives: dict[str, Archive],
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    def full(path: Path, mode: str) -> Full:
        file = Full(moment)
        file.fail("open")
        return file

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(RuntimeError, match="no space is left for"):
        fetch_archive(archives["2012"], tmp_path, num_attempts=2, backoff_s=0.01)
    assert len(server.asked) == 1


def test_an_impossible_folder_is_refused(tmp_path: Path, archives: dict[str, Archive]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="name a folder you may write to"):
        fetch("voc2012", tmp_path / "file" / "data", archives)


def test_two_processes_download_once(
    tmp_path: Path, server: Server, archives: dict[str, Archive]
) -> None:
    threads = [
        threading.Thread(target=fetch, args=("voc0712", tmp_path, archives)) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(filename for filename, _ in server.asked) == sorted(server.files)
    assert set(voc_members("2007-test")) <= files_of(tmp_path)


def test_an_unknown_edition_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="voc2010 is not a VOC edition: name one of voc2007"):
        fetch_voc("voc2010", tmp_path)


def test_torchvision_has_all_addresses() -> None:
    voc = pytest.importorskip("torchvision.datasets.voc")
    for key, year in (("2007", 2007), ("2007-test", 2007), ("2012", 2012)):
        entry = voc.DATASET_YEAR_DICT[key]
        assert entry["url"].startswith("https://")
        assert entry["base_dir"] == f"VOCdevkit/VOC{year}"
        assert len(entry["md5"]) == 32
    assert NAMES == ("voc2007", "voc2012", "voc0712")
