"""Fixtures for all tests."""

from __future__ import annotations

import functools
import gc
import logging
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import filelock
import pytest
import torch

from tests.processes.written import Written

ROOT = Path(__file__).resolve().parent.parent
# W&B has its own tests; the others must not start its process at every launch.
os.environ["WANDB_MODE"] = "disabled"


def pytest_configure() -> None:
    # Under nohup it is ignored, and so it would be in all processes that tests start.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="where tests make their tensors: cpu or cuda")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Share the tests out by file, for `-n` with whichever `--dist`."""
    from tests.processes.parallel import ByUnit

    return ByUnit(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if _is_worker(config):
        from tests.processes.parallel import in_order

        tests = [(item.nodeid, item.get_closest_marker("slow") is not None) for item in items]
        items[:] = [items[index] for index in in_order(tests)]


def pytest_collection_finish() -> None:
    # Every garbage collection would go through the libraries and tests that were imported.
    gc.collect()
    gc.freeze()


def _is_worker(config: pytest.Config) -> bool:
    """Return whether this process is one of several of `pytest -n N`."""
    return hasattr(config, "workerinput")


@pytest.fixture(autouse=True)
def _process_stays_as_it_was() -> Iterator[None]:
    """Fail a test that changes a setting of the process: all tests after it would run with it."""
    before = _settings_of_the_process()
    yield
    after = _settings_of_the_process()
    changed = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
    assert not changed, f"this test changes the process for those after it: {changed}"


@pytest.fixture(scope="session")
def _written() -> Written:
    return Written(ROOT)


@pytest.fixture(autouse=True)
def _checkout_stays_as_it_was(_written: Written) -> Iterator[None]:
    """Fail a test that leaves files in the checkout, such as a work dir in ``runs``."""
    _written.left()
    yield
    left = _written.left()
    assert not left, f"this test leaves files in the checkout; give it a folder: {left[:5]}"


def _settings_of_the_process() -> dict[str, object]:
    settings: dict[str, object] = {
        "folder": os.getcwd(),
        "dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
    for name in ("", "dq", "dq.train", "launcher"):
        logger = logging.getLogger(name)
        settings[f"log {name}"] = (logger.level, logger.disabled, logger.propagate)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        settings[number.name] = signal.getsignal(number)
    return settings


@pytest.fixture(autouse=True)
def _device(request: pytest.FixtureRequest) -> Iterator[None]:
    """Create tensors and modules of a test on the device of ``--device``."""
    device = request.config.getoption("--device")
    if device == "cpu":
        yield
        return
    if request.node.get_closest_marker("cpu"):
        pytest.skip("this test is about a CPU")
    # TF32 convolutions keep ten bits, too few for comparisons.
    torch.backends.cudnn.allow_tf32 = False
    from tests.devices.on_device import OnDevice

    # Layers in a test's parameters were created before the test started.
    for value in getattr(request.node, "callspec", SimpleNamespace(params={})).params.values():
        if isinstance(value, torch.nn.Module):
            value.to(device)

    with OnDevice(torch.device(device)):
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data and weights that are not part of the project: ``$DQ_SHARED`` or ``../shared``."""
    folder = Path(os.environ.get("DQ_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(
            f"no shared data at {folder}; set DQ_SHARED to a folder with data/ and weights/"
        )
    return folder


Once = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Once:
    """Return a function that fills a folder once for all workers, and returns the folder.

    It gets a name, the same in all workers, and a function that writes into the new folder. The
    first worker calls this function while the others wait; if it fails, the next one tries again.
    Tests must not change the folder.
    """
    base = tmp_path_factory.getbasetemp()
    base = base.parent if _is_worker(request.config) else base

    def folder(name: str, write: Callable[[Path], object]) -> Path:
        made, written = base / "once" / name, base / "once" / f"{name}.written"
        made.parent.mkdir(exist_ok=True)
        with filelock.FileLock(base / "once" / f"{name}.lock"):
            if not written.exists():
                shutil.rmtree(made, ignore_errors=True)
                made.mkdir()
                write(made)
                written.touch()
        return made

    return folder


@pytest.fixture(scope="session")
def digits(once: Once) -> Path:
    """A small embedded data set: 24 images to train on, 7 to validate, 11 to test."""
    from dq.data.digits import write_digits

    def write(folder: Path) -> None:
        write_digits(
            folder / "digits", num_train=24, num_val=7, num_test=11, image_size=160, seed=3
        )

    return once("data", write) / "digits"


@pytest.fixture(autouse=True, scope="session")
def _operators_of_onnx_are_listed_once() -> None:
    """torch lists them again for each export, which takes a third of a small net's time."""
    from torch.onnx._internal.exporter import _registration

    scripts = _registration.onnxscript_apis
    scripts.get_torchlib_ops = functools.cache(scripts.get_torchlib_ops)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
