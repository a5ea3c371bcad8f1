"""Checkpoints: written whole or not at all, verified when read, and reading runs no code."""

import errno
import hashlib
import os
import pickle
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dq.dist.files.checkpoint import load_checkpoint, note_of, peek_checkpoint, save_checkpoint
from dq.dist.files.safe_globals import numpy_globals

CONTENT: dict[str, Any] = {
    "state_dict": {"weight": torch.arange(2000.0), "count": torch.tensor(3)},
    "meta": {"epoch": 3, "CLASSES": ("cat", "dog"), "best": 0.5},
}


class Stranger:
    """A class that torch does not load without trust."""


def sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


def test_saved_content_is_loaded_and_sha256sum_can_check_it(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "epoch_1.pth"
    save_checkpoint(path, CONTENT)
    loaded = load_checkpoint(path)
    assert torch.equal(loaded["state_dict"]["weight"], CONTENT["state_dict"]["weight"])
    assert loaded["meta"] == CONTENT["meta"]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert sidecar(path).read_text() == f"{digest}  epoch_1.pth\n"
    assert sorted(os.listdir(path.parent)) == ["epoch_1.pth", "epoch_1.pth.sha256"]


def test_a_note_does_not_disturb_sha256sum(tmp_path: Path) -> None:
    path = tmp_path / "epoch_1.pth"
    save_checkpoint(path, CONTENT)
    assert note_of(path) is None
    assert note_of(tmp_path / "none.pth") is None
    save_checkpoint(path, CONTENT, note="step 7")
    assert note_of(path) == "step 7"
    checked = subprocess.run(
        ["sha256sum", "--check", "--strict", sidecar(path).name],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert checked.stdout == "epoch_1.pth: OK\n", checked.stderr


@pytest.mark.parametrize("new_format", [True, False])
def test_peek_reads_everything_but_tensor_values(tmp_path: Path, new_format: bool) -> None:
    path = tmp_path / "epoch_1.pth"
    torch.save(CONTENT, path, _use_new_zipfile_serialization=new_format)
    found = peek_checkpoint(path)
    assert found is not None
    assert found["meta"] == CONTENT["meta"]
    assert found["state_dict"]["weight"].device.type == "meta"
    assert found["state_dict"]["weight"].shape == (2000,)


def test_peek_returns_none_for_other_files(tmp_path: Path) -> None:
    path = tmp_path / "epoch_1.pth"
    assert peek_checkpoint(path) is None
    for content in (b"", b"hello world\n"):
        path.write_bytes(content)
        assert peek_checkpoint(path) is None
    torch.save({"meta": Stranger()}, path)
    assert peek_checkpoint(path) is None
    torch.save([1, 2], path)
    assert peek_checkpoint(path) is None


def test_saving_again_replaces_file_and_checksum(tmp_path: Path) -> None:
    path = tmp_path / "latest.pth"
    save_checkpoint(path, {"step": 1})
    save_checkpoint(path, {"step": 2})
    assert load_checkpoint(path) == {"step": 2}


@pytest.mark.parametrize("with_sidecar", [True, False])
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(path.read_bytes()[:700]),
        lambda path: flip(path, 5000),  # In a tensor: torch.load alone does not notice it.
        lambda path: flip(path, 80),  # In the pickle.
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"hello world\n"),
        lambda path: path.write_bytes(b'{"a": 1}'),
    ],
    ids=["cut", "cut short", "bit of a tensor", "bit of the pickle", "empty", "text", "json"],
)
def test_damage_is_one_clear_line(tmp_path: Path, damage: Any, with_sidecar: bool) -> None:
    path = tmp_path / "epoch_1.pth"
    save_checkpoint(path, CONTENT)
    if not with_sidecar:
        sidecar(path).unlink()
    damage(path)
    with pytest.raises(ValueError, match=r"epoch_1\.pth") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert "checkpoint" in str(caught.value)
    assert any(mend in str(caught.value) for mend in ("use an earlier", "use an", "fetch it"))


def test_the_message_has_the_first_sentence_of_torchs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise RuntimeError("it has no magic. A long story.\nAnd more of it")

    path = tmp_path / "epoch_1.pth"
    save_checkpoint(path, CONTENT)
    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(
        ValueError, match=r"not a checkpoint \(RuntimeError: it has no magic\); use"
    ):
        load_checkpoint(path)


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError])
@pytest.mark.parametrize("read", [load_checkpoint, peek_checkpoint])
def test_memory_that_runs_out_is_not_called_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Any, error: type[Exception]
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise error("no memory")

    path = tmp_path / "epoch_1.pth"
    save_checkpoint(path, CONTENT)
    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(error, match="no memory"):
        read(path)


def test_a_missing_file_a_folder_and_a_list_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist; check the path"):
        load_checkpoint(tmp_path / "none.pth")
    with pytest.raises(ValueError, match="is a folder"):
        load_checkpoint(tmp_path)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds a list, not a dict"):
        load_checkpoint(tmp_path / "list.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_names_a_class_needs_trust(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "foreign.pth"
    torch.save({"it": Stranger()}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"object of \S*Stranger, .*trusted=True \(--trust-check"):
        load_checkpoint(path)
    assert isinstance(load_checkpoint(path, trusted=True)["it"], Stranger)


@pytest.mark.parametrize("old_names", [True, False])
def test_numpy_numbers_and_arrays_need_no_trust(tmp_path: Path, old_names: bool) -> None:
    content = {
        "best": np.float64(0.25),
        "epoch": np.int64(7),
        "flag": np.bool_(True),
        "state": np.arange(6, dtype=np.uint32).reshape(2, 3),
        "names": np.array(["a", "bc"]),
    }
    path = tmp_path / "zoo.pth"
    # The older format has no checksums, so names of numpy 1 can be written into it.
    torch.save(content, path, _use_new_zipfile_serialization=False)
    if old_names:
        data = path.read_bytes()
        assert b"numpy._core.multiarray" in data
        path.write_bytes(data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    loaded = load_checkpoint(path)
    assert all(np.array_equal(loaded[name], value) for name, value in content.items())


def test_a_file_that_cannot_be_pickled_is_the_callers_error_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    with pytest.raises((AttributeError, pickle.PicklingError)):
        save_checkpoint(tmp_path / "x.pth", {"function": lambda: None})
    assert os.listdir(tmp_path) == []


def test_an_error_that_the_caller_handles_is_not_called_the_disks(tmp_path: Path) -> None:
    try:
        (tmp_path / "missing").read_bytes()
    except OSError:
        with pytest.raises((AttributeError, pickle.PicklingError)):
            save_checkpoint(tmp_path / "a.pth", {"function": lambda: 0})
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_at_the_flush_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "latest.pth"
    save_checkpoint(path, {"step": 1})

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RuntimeError, match=r"latest\.pth could not be written: No space left"):
        save_checkpoint(path, {"step": 2})
    assert load_checkpoint(path) == {"step": 1}
    assert sorted(os.listdir(tmp_path)) == ["latest.pth", "latest.pth.sha256"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if mounted.returncode != 0:
        pytest.skip(f"a small disk needs the right to mount: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_one_line_and_leaves_the_old_file(small_disk: Path) -> None:
    path = small_disk / "latest.pth"
    save_checkpoint(path, {"step": 1})
    with pytest.raises(RuntimeError, match="No space left on device") as caught:
        save_checkpoint(path, {"weight": torch.zeros(200_000)})
    assert "\n" not in str(caught.value)
    assert load_checkpoint(path) == {"step": 1}
    assert sorted(os.listdir(small_disk)) == ["latest.pth", "latest.pth.sha256"]


def test_what_a_file_may_name_is_listed_once() -> None:
    assert numpy_globals() is numpy_globals()
