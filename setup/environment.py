"""Create the virtual environment: torch, mmcv-full compiled from its sdist, then this project.

The Makefile runs it with the system's Python, so it uses only the standard library. A step is
skipped if its result exists already, so a second run takes seconds.

mmcv-full 1.7.2 has no wheel for current torch. Its sdist asks for C++17 while torch's headers need
C++20, so the build uses a compiler wrapper that changes that one flag (and drops ``-g``, which
doubles the compile time). The wheel is kept in the user's cache, one for each combination of
mmcv, torch, Python and accelerator.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "setup" / "constraints.txt"
VENV_GIB = 8.0
BUILD_GIB = 2.0
BUILD_TOOLS = ("pip", "setuptools", "wheel", "ninja")
BEFORE_MMCV = ("torch", "torchvision", "numpy", "opencv-python-headless", "packaging", "pyyaml")


class SetupError(Exception):
    """What is wrong with this machine and how to fix it, in one line."""


def say(text: str) -> None:
    """Print one line of progress with the time of day."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def pinned(name: str) -> str:
    """Return the ``name==version`` line of the constraints file."""
    for line in CONSTRAINTS.read_text().splitlines():
        if line.split("==")[0] == name:
            return line.strip()
    raise SetupError(f"{CONSTRAINTS} does not pin {name}; add a line '{name}==VERSION'")


def cache_root() -> Path:
    """Return the folder that keeps compiled wheels between environments."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "dq-launcher" / "wheels"


def require_space(folder: Path, gib: float, purpose: str) -> None:
    """Raise unless ``folder``'s disk has ``gib`` GiB free."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 2**30
    if free < gib:
        raise SetupError(
            f"{purpose} needs {gib:.0f} GiB on the disk of {folder}, which has {free:.1f} GiB free;"
            " free some space or choose another place (VENV=..., XDG_CACHE_HOME=..., TMPDIR=...)"
        )


def require_compiler(name: str) -> str:
    """Return the C++ compiler's path; raise if there is none that knows C++20 and Python.h."""
    path = shutil.which(name)
    if path is None:
        raise SetupError(
            f"mmcv-full has to be compiled and there is no C++ compiler '{name}';"
            " install one (Debian/Ubuntu: apt-get install g++) or set CXX"
        )
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text("#include <Python.h>\n#include <version>\nint main() { return 0; }\n")
        include = sysconfig.get_paths()["include"]
        command = [path, "-std=c++20", f"-I{include}", "-c", str(source), "-o", f"{folder}/probe.o"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[0]
        raise SetupError(
            f"{path} cannot compile a C++20 file that includes Python.h ({reason});"
            " install g++ 10 or newer and Python's headers"
            " (Debian/Ubuntu: apt-get install g++ python3-dev)"
        )
    return path


def run(command: Sequence[str | Path], *, log: Path, env: dict[str, str] | None = None) -> None:
    """Run a command with its output in ``log``; raise with the log's end if it fails.

    Lines such as ``[12/73]`` of ninja and pip's ``Downloading`` are shown as progress.
    """
    with log.open("a", encoding="utf-8", errors="replace") as sink:
        sink.write("$ " + " ".join(map(str, command)) + "\n")
        process = subprocess.Popen(
            [str(part) for part in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=env,
            text=True,
            errors="replace",
        )
        assert process.stdout is not None
        shown = 0.0
        for line in process.stdout:
            sink.write(line)
            step = re.search(r"\[(\d+)/(\d+)\]", line)
            if step and (time.monotonic() - shown > 20 or step[1] == step[2]):
                shown = time.monotonic()
                say(f"  compiled {step[1]} of {step[2]} files")
            elif re.match(r"\s*Downloading \S+", line) and time.monotonic() - shown > 5:
                shown = time.monotonic()
                say("  " + line.strip()[:100])
    if process.wait():
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-25:])
        raise SetupError(
            f"this command failed: {' '.join(map(str, command))}\n{tail}\nfull log: {log}"
        )


def installed_version(python: Path, module: str) -> str | None:
    """Return the version of a distribution in the environment, None if it is absent."""
    code = (
        "import importlib.metadata as m, sys\n"
        "try: print(m.version(sys.argv[1]))\n"
        "except m.PackageNotFoundError: pass"
    )
    done = subprocess.run([python, "-c", code, module], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def is_installed(python: Path, requirement: str) -> bool:
    """Return whether exactly this ``name==version`` is in the environment."""
    name, version = requirement.split("==")
    found = installed_version(python, name)
    return found is not None and found.split("+")[0] == version


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


def write_wrapper(path: Path, compiler: str) -> Path:
    """Write a script that calls ``compiler`` with C++20 for C++17 and without debug symbols."""
    path.write_text(
        "#!/bin/bash\n"
        "args=()\n"
        'for a in "$@"; do\n'
        '  case "$a" in\n'
        '    -std=c++17) args+=("-std=c++20") ;;\n'
        "    -g) ;;\n"
        '    *) args+=("$a") ;;\n'
        "  esac\n"
        "done\n"
        f'exec "{compiler}" "${{args[@]}}"\n'
    )
    path.chmod(0o755)
    return path


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
    say(f"compiling mmcv-full for {kind} with {jobs} jobs (once; 8 to 16 minutes on two cores)")
    with tempfile.TemporaryDirectory(prefix="mmcv-build-") as temporary:
        build = Path(temporary)
        env = {
            **os.environ,
            "CXX": str(write_wrapper(build / "g++", compiler)),
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


def fingerprint(extras: str) -> str:
    """Return a digest of everything that affects what is installed."""
    digest = hashlib.sha256(extras.encode())
    for path in (ROOT / "pyproject.toml", CONSTRAINTS, Path(__file__)):
        digest.update(path.read_bytes())
    digest.update(sys.version.encode())
    return digest.hexdigest()


def create(venv: Path, extras: str) -> None:
    """Install the project and its dependencies into ``venv``; do nothing if they already are."""
    if not (3, 11, 4) <= sys.version_info < (3, 14):
        version = platform.python_version()
        raise SetupError(
            f"Python 3.11.4 to 3.13 is needed, this is {version}; set PYTHON=python3.11"
        )
    stamp, wanted = venv / "setup.sha256", fingerprint(extras)
    if stamp.exists() and stamp.read_text() == wanted:
        return
    began = time.monotonic()
    python = venv / "bin" / "python"
    log = venv / "setup.log"
    if not python.exists():
        require_space(venv.parent, VENV_GIB, "the virtual environment")
        say(f"creating {venv}")
        done = subprocess.run(
            [sys.executable, "-m", "venv", venv], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SetupError(
                f"python -m venv {venv} failed: {(done.stdout + done.stderr).strip()[:300]}"
                " (Debian/Ubuntu: apt-get install python3-venv)"
            )
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off"]
    pip += ["-c", CONSTRAINTS]
    missing = [
        pinned(n) for n in (*BUILD_TOOLS, *BEFORE_MMCV) if not is_installed(python, pinned(n))
    ]
    if missing:
        say(f"installing torch and build tools ({len(missing)} packages, up to 5.5 GB, minutes)")
        run([*pip, *missing], log=log)
    if not is_installed(python, pinned("mmcv-full")):
        wheel = mmcv_wheel(python, log)
        say(f"installing {wheel.name}")
        run([*pip, wheel], log=log)
    say("installing the project and its dependencies")
    run([*pip, "--no-build-isolation", "-e", f"{ROOT}[{extras}]"], log=log)
    stamp.write_text(wanted)
    say(f"environment ready in {time.monotonic() - began:.0f} s: {venv}")


def main() -> int:
    """Parse the command line, create the environment, return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="where it goes")
    parser.add_argument("--extras", default="test,demo", help="optional dependency groups")
    arguments = parser.parse_args()
    try:
        create(arguments.venv.resolve(), arguments.extras)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        print(f"error: {error}: {(error.stderr or '')[-500:]}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
