"""Compile the wheel of mmcv-full, once for each combination of mmcv, torch, Python, accelerator.

    python setup/mmcv_wheel.py [--install]

mmcv-full 1.7.2 has no wheel for current torch. The wheel is kept in the user's cache. The set-up
calls this; as a script it compiles for the environment that runs it, for example after a GPU was
added. pip's own variables (``PIP_NO_INDEX``, ``PIP_FIND_LINKS``) let it work without a network.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from compiler import HEADERS, precompiles, require_compiler, write_wrapper
from cuda_toolkit import gpus_of, toolkit
from pins import pinned
from steps import SetupError, require_space, run, say

BUILD_GIB = 2.0


def cache_root() -> Path:
    """Return the folder that keeps compiled wheels between environments."""
    try:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    except RuntimeError as error:
        raise SetupError(
            f"user {os.getuid()} has no home folder for the compiled mmcv-full; set HOME or"
            " XDG_CACHE_HOME to a folder"
        ) from error
    return Path(base) / "dq-launcher" / "wheels"


def mmcv_wheel(python: Path, log: Path) -> Path:
    """Return mmcv-full's wheel from the cache; compile it first if it is not there.

    It is compiled for the machine's GPUs if torch sees some, with the machine's CUDA toolkit or
    pip's. Where that is not possible it is compiled for the CPU, and a line says so: the launcher
    runs on a GPU with that, too.
    """
    gpus = gpus_of(python)
    if gpus is not None:
        folder = _folder(python, f"cuda{gpus.cuda}-{gpus.architectures.replace(';', '_')}")
        if found := sorted(folder.glob("mmcv_full-*.whl")):
            return found[0]
        with tempfile.TemporaryDirectory(prefix="cuda-") as temporary:
            home = toolkit(python, gpus, Path(temporary), log)
            if home is not None:
                environ = {"FORCE_CUDA": "1", "CUDA_HOME": str(home)}
                environ["TORCH_CUDA_ARCH_LIST"] = gpus.architectures
                try:
                    return _compiled(python, folder, log, environ)
                except SetupError as error:
                    say(f"mmcv-full cannot be compiled with CUDA ({str(error).splitlines()[-1]})")
        say("mmcv-full's operators are built for the CPU; on the GPU others take their place")
    folder = _folder(python, "cpu")
    if found := sorted(folder.glob("mmcv_full-*.whl")):
        return found[0]
    # mmcv's setup compiles CUDA sources if torch sees a GPU, even without nvcc.
    return _compiled(python, folder, log, {"FORCE_CUDA": "0", "CUDA_VISIBLE_DEVICES": ""})


def _folder(python: Path, kind: str) -> Path:
    """Return where a wheel for ``kind`` is kept, such as ``cpu`` or ``cuda13.0-9.0``."""
    code = "import importlib.metadata as m; print(m.version('torch').partition('+')[0])"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    version = pinned("mmcv-full").replace("==", "")
    tag = f"{version}-torch{done.stdout.strip()}-{sys.implementation.cache_tag}"
    return cache_root() / f"{tag}-{kind}-{platform.machine()}"


def _compiled(python: Path, folder: Path, log: Path, environ: Mapping[str, str]) -> Path:
    """Compile the wheel into ``folder`` and return it.

    Args:
        python: The environment's interpreter, with torch.
        folder: In the cache.
        log: Gets the compiler's output.
        environ: Variables that choose between the CPU and CUDA.
    """
    compiler = require_compiler(os.environ.get("CXX", "g++"))
    require_space(folder, BUILD_GIB, "compiling mmcv-full")
    require_space(Path(tempfile.gettempdir()), BUILD_GIB, "compiling mmcv-full")
    jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
    cuda = environ.get("CUDA_HOME")
    target = f"CUDA {environ['TORCH_CUDA_ARCH_LIST']}" if cuda else "the CPU"
    minutes = "2 to 4 minutes on two cores" if not cuda else "5 minutes on 16 cores"
    say(f"compiling mmcv-full for {target} with {jobs} jobs (once; {minutes})")
    headers = HEADERS if precompiles(compiler) else ()
    with tempfile.TemporaryDirectory(prefix="mmcv-build-") as temporary:
        build = Path(temporary)
        env = {
            **os.environ,
            **environ,
            "CXX": str(write_wrapper(build / "g++", compiler, headers)),
            "CC": os.environ.get("CC", "gcc"),
            "MMCV_WITH_OPS": "1",
            "MAX_JOBS": jobs,
            "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        }
        if cuda:
            nvcc = str(Path(cuda) / "bin" / "nvcc")
            env["PYTORCH_NVCC"] = str(write_wrapper(build / "nvcc", nvcc))
        wheel = [python, "-m", "pip", "wheel", "-v", "--no-build-isolation", "--no-deps"]
        wheel += ["--no-cache-dir", "--no-binary", "mmcv-full", "-w", build / "out"]
        run([*wheel, pinned("mmcv-full")], log=log, env=env)
        (built,) = (build / "out").glob("mmcv_full-*.whl")
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".{built.name}.{os.getpid()}.partial"
        shutil.copyfile(built, partial)
        partial.rename(folder / built.name)
    return folder / built.name


def main() -> int:
    """Compile for this interpreter's environment; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--install", action="store_true", help="install the wheel as well")
    arguments = parser.parse_args()
    python = Path(sys.executable)
    try:
        with tempfile.TemporaryDirectory() as temporary:
            log = Path(temporary) / "log"
            wheel = mmcv_wheel(python, log)
            if arguments.install:
                again = ["--force-reinstall", "--no-deps"]
                run([python, "-m", "pip", "install", *again, wheel], log=log)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(wheel)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
