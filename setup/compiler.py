"""The C++ compiler that builds mmcv-full: checked, and wrapped to change a few options.

mmcv-full asks for C++17 while torch's headers need C++20, and for debug symbols, which double the
time. Each of its files includes the same headers of torch, which take four fifths of the time of a
file; g++ reads them once and keeps them as a precompiled header.
"""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path

from steps import SetupError

# What every source of mmcv-full includes first.
HEADERS = ("torch/types.h", "vector")


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


def precompiles(compiler: str) -> bool:
    """Return whether a compiler is g++, whose precompiled headers the wrapper can use.

    g++ reads the header itself where the precompiled one was made with other options. clang raises
    an error then.
    """
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    return "Free Software Foundation" in done.stdout and shutil.which("flock") is not None


def write_wrapper(path: Path, compiler: str, headers: tuple[str, ...] = ()) -> Path:
    """Write a script that calls ``compiler`` with C++20 for C++17 and without debug symbols.

    Args:
        path: Of the script.
        compiler: The compiler's path.
        headers: Precompiled by the first call for a ``.cpp`` file, and used by all of them; the
            files lie beside the script. Only for g++.
    """
    text = [
        "#!/bin/bash",
        "args=() options=() source= object=",
        'for a in "$@"; do',
        '  case "$a" in',
        '    -std=c++17) a="-std=c++20" ;;',
        "    -g) continue ;;",
        "  esac",
        '  args+=("$a")',
        # The header's options: all but those that name this source and its outputs.
        '  case "$last" in -o|-MF|-MT|-MQ) last="$a"; continue ;; esac',
        '  last="$a"',
        '  case "$a" in',
        '    *.cpp) source="$a" ;;',
        "    -c|-o|-MD|-MMD|-MF|-MT|-MQ) ;;",
        '    *) options+=("$a") ;;',
        "  esac",
        "done",
    ]
    if headers:
        header = path.parent / "precompiled.h"
        header.write_text("".join(f"#include <{name}>\n" for name in headers))
        text += [
            f'header="{header}"',
            'if [ -n "$source" ]; then',
            # Files are compiled at the same time: one makes the header, the others wait.
            '  exec 9>"$header.lock"; flock 9',
            '  if [ ! -e "$header.gch" ] && [ ! -e "$header.failed" ]; then',
            f'    "{compiler}" "${{options[@]}}" -x c++-header "$header" -o "$header.partial" &&',
            '      mv "$header.partial" "$header.gch" || touch "$header.failed"',
            "  fi",
            "  exec 9>&-",
            '  [ -e "$header.gch" ] && args=(-include "$header" "${args[@]}")',
            "fi",
        ]
    text.append(f'exec "{compiler}" "${{args[@]}}"')
    path.write_text("\n".join(text) + "\n")
    path.chmod(0o755)
    return path
