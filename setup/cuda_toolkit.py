"""The CUDA compiler for mmcv-full's operators: the machine's own, or that of pip's packages."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from steps import SetupError, run, say

# nvcc, the headers that it includes in every file, its code generator, and thrust and CUB.
PACKAGES = ("nvidia-cuda-nvcc", "nvidia-cuda-crt", "nvidia-nvvm", "nvidia-cuda-cccl")
# Before CUDA 13 pip's packages had other names and one folder for each.
FIRST_IN_ONE_FOLDER = 13
PROBE = """
import torch
from torch.utils.cpp_extension import CUDA_HOME
number = torch.cuda.device_count() if torch.cuda.is_available() else 0
capabilities = {torch.cuda.get_device_capability(i) for i in range(number)}
names = ";".join(f"{major}.{minor}" for major, minor in sorted(capabilities))
print("dq", names or "-", torch.version.cuda or "-", CUDA_HOME or "-", sep="|")
"""


@dataclass(frozen=True, slots=True)
class Gpus:
    """What torch says about the machine's GPUs.

    Args:
        architectures: Their compute capabilities in torch's notation, such as ``8.0;9.0``.
        cuda: The version of CUDA that torch was built with, such as ``13.0``.
        home: The folder of a CUDA toolkit that torch found; None if there is none.
    """

    architectures: str
    cuda: str
    home: Path | None


def gpus_of(python: Path) -> Gpus | None:
    """Return the machine's GPUs; None if torch sees none."""
    done = subprocess.run([python, "-c", PROBE], capture_output=True, text=True, check=True)
    line = [one for one in done.stdout.splitlines() if one.startswith("dq|")][-1]
    _, architectures, cuda, home = line.split("|")
    if architectures == "-" or cuda == "-":
        return None
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST") or architectures
    return Gpus(wanted, cuda, None if home == "-" else Path(home))


def toolkit(python: Path, gpus: Gpus, folder: Path, log: Path) -> Path | None:
    """Return the folder of a CUDA toolkit whose version torch accepts; None if there is none.

    Args:
        python: The environment's interpreter.
        gpus: The machine's GPUs.
        folder: Where pip's packages are installed if the machine has no toolkit that matches.
        log: Gets pip's output.
    """
    if gpus.home is not None:
        if _release(gpus.home) == gpus.cuda.split(".")[0] and _has_headers(gpus.home):
            return gpus.home
        say(f"the CUDA toolkit in {gpus.home} is not complete or not torch's CUDA {gpus.cuda}")
    if int(gpus.cuda.split(".")[0]) < FIRST_IN_ONE_FOLDER:
        say(f"pip has no complete CUDA {gpus.cuda} toolkit; install one to compile for the GPU")
        return None
    say(f"installing nvcc {gpus.cuda} from pip to compile for the GPU (0.3 GB, only for this)")
    packages = [f"{name}=={gpus.cuda}.*" for name in PACKAGES]
    command = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-deps"]
    try:
        run([*command, "--target", folder / "pip", *packages], log=log)
    except SetupError as error:
        say(f"pip cannot install nvcc: {str(error).splitlines()[-2]}")
        return None
    return joined(folder / "cuda", folder / "pip" / "nvidia", _packages(python) / "nvidia")


def joined(home: Path, compiler: Path, libraries: Path) -> Path:
    """Make a toolkit of links to what pip's packages hold, and return it.

    torch's own packages have headers and libraries, but the library's name for a linker is missing:
    ``libcudart.so.13`` is there, ``libcudart.so`` is not.

    Args:
        home: The toolkit, a new folder.
        compiler: The folder ``nvidia`` with nvcc.
        libraries: The folder ``nvidia`` of the environment with torch.
    """
    for folder in ("bin", "nvvm"):
        _link(home, folder, next(_named(compiler, folder)))
    for root in (compiler, libraries):
        for folder in _named(root, "include"):
            for header in folder.iterdir():
                _link(home / "include", header.name, header)
        for folder in _named(root, "lib"):
            for library in folder.iterdir():
                _link(home / "lib64", library.name, library)
                if ".so." in library.name:
                    _link(home / "lib64", library.name.partition(".so.")[0] + ".so", library)
    return home


def _named(root: Path, name: str) -> Iterator[Path]:
    """Yield the folders of that name in each package's folder."""
    return (path for path in sorted(root.glob(f"*/{name}")) if path.is_dir())


def _link(folder: Path, name: str, target: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / name).is_symlink():
        (folder / name).symlink_to(target)


def _packages(python: Path) -> Path:
    code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return Path(done.stdout.strip())


def _has_headers(home: Path) -> bool:
    """Return whether a toolkit has what mmcv's sources include; conda's has it in ``targets``."""
    header = "include/cuda_runtime.h"
    return (home / header).exists() or any(home.glob(f"targets/*/{header}"))


def _release(home: Path) -> str | None:
    """Return the major version of the nvcc in a toolkit; None if it has none."""
    nvcc = home / "bin" / "nvcc"
    if not nvcc.exists():
        return None
    done = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"release (\d+)\.", done.stdout)
    return found[1] if found else None
