"""Compile the wheel of mmcv-full, once for each combination of mmcv, torch, Python, accelerator.

mmcv-full 1.7.2 has no wheel for current torch. The wheel is kept in the user's cache.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from compiler import HEADERS, precompiles, require_compiler, write_wrapper
from pins import pinned
from steps import require_space, run, say

BUILD_GIB = 2.0


def cache_root() -> Path:
    """Return the folder that keeps compiled wheels between environments."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "dq-launcher" / "wheels"


def accelerator(python: Path) -> str:
    """Return ``cuda`` if torch sees a GPU and there is a matching nvcc, else ``cpu``."""
    code = (
        "import torch\n"
        "from torch.utils.cpp_extension import CUDA_HOME\n"
        "print(int(torch.cuda.is_available()), torch.version.cuda or '', CUDA_HOME or '')"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    available, _, rest = done.stdout.strip().splitlines()[-1].partition(" ")
    torch_cuda, _, home = rest.partition(" ")
    nvcc = Path(home) / "bin" / "nvcc" if home else None
    if available != "1" or nvcc is None or not nvcc.exists():
        if available == "1":
            say("a GPU but no nvcc: mmcv-full's operators are built for the CPU")
        return "cpu"
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"release (\d+)\.", text)
    if release is None or release[1] != torch_cuda.split(".")[0]:
        say(f"nvcc does not match torch's CUDA {torch_cuda}: mmcv-full is built for the CPU")
        return "cpu"
    return "cuda"


def mmcv_wheel(python: Path, log: Path) -> Path:
    """Return mmcv-full's wheel from the cache; compile it first if it is not there."""
    kind = accelerator(python)
    torch_version = pinned("torch").replace("==", "")
    tag = f"{pinned('mmcv-full').replace('==', '')}-{torch_version}-{sys.implementation.cache_tag}"
    folder = cache_root() / f"{tag}-{kind}-{platform.machine()}"
    found = sorted(folder.glob("mmcv_full-*.whl"))
    if found:
        return found[0]
    compiler = require_compiler(os.environ.get("CXX", "g++"))
    require_space(folder, BUILD_GIB, "compiling mmcv-full")
    require_space(Path(tempfile.gettempdir()), BUILD_GIB, "compiling mmcv-full")
    jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
    say(f"compiling mmcv-full for {kind} with {jobs} jobs (once; 2 to 4 minutes on two cores)")
    headers = HEADERS if precompiles(compiler) else ()
    with tempfile.TemporaryDirectory(prefix="mmcv-build-") as temporary:
        build = Path(temporary)
        env = {
            **os.environ,
            "CXX": str(write_wrapper(build / "g++", compiler, headers)),
            "CC": os.environ.get("CC", "gcc"),
            "MMCV_WITH_OPS": "1",
            "FORCE_CUDA": "1" if kind == "cuda" else "0",
            "MAX_JOBS": jobs,
            "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        }
        if kind == "cpu":
            # mmcv's setup compiles CUDA sources if torch sees a GPU, even without nvcc.
            env["CUDA_VISIBLE_DEVICES"] = ""
        if kind == "cuda":
            nvcc = shutil.which(
                "nvcc", path=f"{env.get('CUDA_HOME', '/usr/local/cuda')}/bin:{env['PATH']}"
            )
            env["PYTORCH_NVCC"] = str(write_wrapper(build / "nvcc", nvcc or "nvcc"))
        wheel = [python, "-m", "pip", "wheel", "-v", "--no-build-isolation", "--no-deps"]
        wheel += [
            "--no-cache-dir",
            "--no-binary",
            "mmcv-full",
            "-w",
            build / "out",
            pinned("mmcv-full"),
        ]
        run(wheel, log=log, env=env)
        (built,) = (build / "out").glob("mmcv_full-*.whl")
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".{built.name}.{os.getpid()}.partial"
        shutil.copyfile(built, partial)
        partial.rename(folder / built.name)
    return folder / built.name
