"""The set-up names what a machine lacks, and changes only the necessary compiler options."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = ("environment", "mmcv_wheel", "cuda_toolkit", "compiler", "pins", "steps")


@pytest.fixture(scope="module")
def setup(scripts: dict[str, ModuleType]) -> SimpleNamespace:
    """The names of the files that make the environment."""
    names = {k: v for name in reversed(FILES) for k, v in vars(scripts[name]).items()}
    return SimpleNamespace(**names, modules=scripts)


def test_missing_compiler_is_reported_with_the_fix(setup: SimpleNamespace) -> None:
    with pytest.raises(setup.SetupError, match=r"no C\+\+ compiler 'no-such-g\+\+'.*apt-get"):
        setup.require_compiler("no-such-g++")


def test_compiler_without_cxx20_is_reported(setup: SimpleNamespace, tmp_path: Path) -> None:
    old = tmp_path / "old-g++"
    old.write_text("#!/bin/sh\necho 'unrecognized option -std=c++20' >&2\nexit 1\n")
    old.chmod(0o755)
    with pytest.raises(setup.SetupError, match=r"cannot compile a C\+\+20 file.*unrecognized"):
        setup.require_compiler(str(old))


def test_full_disk_is_reported_before_anything_is_done(
    setup: SimpleNamespace, tmp_path: Path
) -> None:
    with pytest.raises(setup.SetupError, match="needs 1000000000 GiB"):
        setup.require_space(tmp_path / "not" / "there", 1e9, "this test")


def test_wrapper_changes_the_standard_and_drops_debug_symbols(
    setup: SimpleNamespace, tmp_path: Path
) -> None:
    wrapper = setup.write_wrapper(tmp_path / "g++", "/bin/echo")
    words = ["-g", "-std=c++17", "-O2", "-DNAME=a b", "-gx"]
    done = subprocess.run([wrapper, *words], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "-std=c++20 -O2 -DNAME=a b -gx"


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
def test_headers_are_compiled_once_for_all_files(setup: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "once.h").write_text("#pragma once\ninline int one() { return 1; }\n")
    gxx = shutil.which("g++") or ""
    assert setup.precompiles(gxx)
    wrapper = setup.write_wrapper(tmp_path / "g++", gxx, ("once.h",))
    options = ["-I", tmp_path, "-std=c++17", "-O2", "-fPIC"]

    def compiled(name: str, *, code: str) -> Path:
        (tmp_path / f"{name}.cpp").write_text(code)
        made = tmp_path / f"{name}.o"
        words = ["-MMD", "-MF", f"{made}.d", *options, "-c", tmp_path / f"{name}.cpp", "-o", made]
        subprocess.run([wrapper, *words], check=True)
        return made

    first = compiled("first", code='#include "once.h"\nint a() { return one(); }\n')
    assert (tmp_path / "precompiled.h.gch").is_file()
    # Nothing reads the header again.
    (tmp_path / "once.h").write_text("#error read again\n")
    second = compiled("second", code="int b() { return one(); }\nint main() { return b(); }\n")
    linked = [wrapper, first, second, "-o", tmp_path / "program"]
    subprocess.run(linked, check=True)
    assert subprocess.run([tmp_path / "program"], check=False).returncode == 1


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
def test_files_compile_where_their_headers_cannot_be_precompiled(
    setup: SimpleNamespace, tmp_path: Path
) -> None:
    wrapper = setup.write_wrapper(tmp_path / "g++", shutil.which("g++"), ("not/there.h",))
    (tmp_path / "a.cpp").write_text("int a() { return 1; }\n")
    for _ in range(2):
        words = ["-c", tmp_path / "a.cpp", "-o", tmp_path / "a.o"]
        subprocess.run([wrapper, *words], check=True, capture_output=True)
    assert (tmp_path / "precompiled.h.failed").is_file()


def test_progress_says_how_long_the_rest_takes(
    setup: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(100, 10_000, 25))
    monkeypatch.setattr(setup.modules["steps"].time, "monotonic", lambda: next(clock))
    progress = setup.Progress()
    for done in range(1, 6):
        progress.show(done, 5)
    lines = [line.partition("compiled ")[2] for line in capsys.readouterr().out.splitlines()]
    assert lines == ["1 of 5 files", "2 of 5 files, 75 s left", "3 of 5 files, 50 s left",
                     "4 of 5 files, 25 s left", "5 of 5 files"]  # fmt: skip


def test_failing_command_shows_the_end_of_its_log(setup: SimpleNamespace, tmp_path: Path) -> None:
    code = "print('the reason'); raise SystemExit(3)"
    with pytest.raises(setup.SetupError, match=r"(?s)the reason.*full log: "):
        setup.run([sys.executable, "-c", code], log=tmp_path / "log")


def test_every_dependency_is_pinned_to_one_known_good_version(setup: SimpleNamespace) -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    for requirement in (r for group in groups for r in group):
        name = re.split(r"[<>=\[]", requirement)[0]
        assert setup.pinned(name).startswith(f"{name}==")


def test_second_set_up_with_nothing_changed_does_nothing(
    setup: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "setup.sha256").write_text(setup.fingerprint("test"))
    failing = lambda *a, **k: pytest.fail("something was installed")  # noqa: E731
    monkeypatch.setattr(setup.modules["environment"], "run", failing)
    setup.create(tmp_path, "test")


@pytest.mark.parametrize("wheel", [None, Path("dist/ours.whl")])
def test_the_project_is_the_checkout_or_a_wheel(
    setup: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wheel: Path | None
) -> None:
    commands: list[list[str]] = []
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").touch()
    patched = {
        "run": lambda words, log: commands.append([str(word) for word in words]),
        "is_installed": lambda *a: False,
        "mmcv_wheel": lambda *a: Path("mmcv_full.whl"),
    }
    for name, function in patched.items():
        monkeypatch.setattr(setup.modules["environment"], name, function)
    setup.create(tmp_path, "demo", project_wheel=wheel)
    assert [words[-1] for words in commands[1:]] == [
        "mmcv_full.whl",
        f"{ROOT}[demo]" if wheel is None else "dist/ours.whl[demo]",
    ]
    assert ("-e" in commands[-1]) is (wheel is None)


def test_a_toolkit_of_pips_packages_has_what_a_compiler_looks_for(
    setup: SimpleNamespace, tmp_path: Path
) -> None:
    compiler, libraries = tmp_path / "pip", tmp_path / "site-packages"
    for path in (
        compiler / "cu13/bin/nvcc",
        compiler / "cu13/nvvm/bin/cicc",
        compiler / "cu13/include/cuda.h",
        compiler / "cu13/lib/libcudart.so.13",
        libraries / "cu13/include/cublas_v2.h",
        libraries / "cu13/lib/libcublas.so.13",
        libraries / "nccl/lib/libnccl.so.2",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)
    home = setup.joined(tmp_path / "cuda", compiler, libraries)
    for name in ("bin/nvcc", "nvvm/bin/cicc", "include/cuda.h", "include/cublas_v2.h",
                 "lib64/libcudart.so", "lib64/libcublas.so", "lib64/libcublas.so.13"):  # fmt: skip
        assert (home / name).is_file(), name


def answering(tmp_path: Path, line: str) -> Path:
    """Return a program that prints what torch says in an environment with a GPU."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho warning\necho '{line}'\n")
    python.chmod(0o755)
    return python


def test_gpus_are_asked_for_by_capability(
    setup: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    gpus = setup.gpus_of(answering(tmp_path, "dq|8.0;9.0|13.0|-"))
    assert (gpus.architectures, gpus.cuda, gpus.home) == ("8.0;9.0", "13.0", None)
    assert setup.gpus_of(answering(tmp_path, "dq|-|13.0|/usr/local/cuda")) is None
    assert setup.gpus_of(answering(tmp_path, "dq|-|-|-")) is None


@pytest.mark.parametrize(
    ("release", "header"),
    [
        ("13.1", "include/cuda_runtime.h"),
        ("13.1", "targets/x86_64-linux/include/cuda_runtime.h"),
        ("13.1", "no headers"),
        ("12.4", "include/cuda_runtime.h"),
    ],
)
def test_the_machines_own_toolkit_is_used_if_it_matches(
    setup: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    release: str,
    header: str,
) -> None:
    (tmp_path / "cuda" / header).parent.mkdir(parents=True)
    (tmp_path / "cuda" / header).touch()
    nvcc = tmp_path / "cuda/bin/nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V1'\n")
    nvcc.chmod(0o755)
    commands = []

    def refuse(words: list[object], log: Path) -> None:
        commands.append([str(word) for word in words])
        raise setup.SetupError("this command failed\nERROR: no matching distribution\nfull log: x")

    monkeypatch.setattr(setup.modules["cuda_toolkit"], "run", refuse)
    gpus = setup.Gpus("9.0", "13.0", tmp_path / "cuda")
    found = setup.toolkit(Path(sys.executable), gpus, tmp_path / "new", tmp_path / "log")
    if release == "13.1" and header.endswith(".h"):
        assert (found, commands) == (tmp_path / "cuda", [])
    else:
        assert found is None
        assert commands[0][-4:] == [f"{name}==13.0.*" for name in setup.PACKAGES]


@pytest.mark.parametrize("compiles", [True, False])
def test_mmcv_is_compiled_for_the_gpu_or_else_for_the_cpu(
    setup: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiles: bool
) -> None:
    environs = []

    def build(words: list[object], *, log: Path, env: dict[str, str]) -> None:
        environs.append(env)
        if env["FORCE_CUDA"] == "1" and not compiles:
            raise setup.SetupError("this command failed\nfull log: x")
        folder = Path(str(words[words.index("-w") + 1]))
        folder.mkdir()
        (folder / f"mmcv_full-{env['FORCE_CUDA']}.whl").write_text("")

    module = setup.modules["mmcv_wheel"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("MAX_JOBS", "3")
    monkeypatch.setattr(module, "run", build)
    monkeypatch.setattr(module, "gpus_of", lambda python: setup.Gpus("8.0;9.0", "13.0", None))
    monkeypatch.setattr(module, "toolkit", lambda *a: tmp_path / "cuda")
    wheel = setup.mmcv_wheel(Path(sys.executable), tmp_path / "log")
    first = environs[0]
    assert first["CUDA_HOME"] == str(tmp_path / "cuda")
    assert (first["TORCH_CUDA_ARCH_LIST"], first["MAX_JOBS"]) == ("8.0;9.0", "3")
    assert wheel.name == f"mmcv_full-{int(compiles)}.whl"
    assert ("cuda13.0-8.0_9.0" if compiles else "-cpu-") in wheel.parent.name
    assert setup.mmcv_wheel(Path(sys.executable), tmp_path / "log") == wheel
    assert len(environs) == (1 if compiles else 3), "what was compiled is not compiled again"
