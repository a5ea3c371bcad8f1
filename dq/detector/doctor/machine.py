"""Checks of the machine: CPUs, memory, limits of this process, room on the disks."""

from __future__ import annotations

import os
import resource
import shutil
from pathlib import Path

from dq.detector.doctor.finding import Finding, failure, good, warning

GIB = 2**30
LEAST_DISK, LITTLE_DISK = GIB, 10 * GIB
LITTLE_SHM = GIB
LEAST_MEMORY, LITTLE_MEMORY = GIB, 4 * GIB
FEW_FILES = 1024
_CGROUP = Path("/sys/fs/cgroup")


def cpus() -> Finding:
    """Compare the machine's CPUs with those that this process may use."""
    there, usable = os.cpu_count() or 1, len(os.sched_getaffinity(0))
    quota = cpu_quota()
    said = f"{usable} of {there}"
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if quota is not None and quota < usable:
        threads = max(1, int(quota))
        return warning(
            f"{said}, but this container gets the time of {quota:g}", f"use --threads {threads}"
        )
    if asked.isdecimal() and int(asked) > usable:
        return warning(f"{said}, but OMP_NUM_THREADS is {asked}", f"set it to {usable} or less")
    return good(said)


def memory() -> Finding:
    """Check the memory that is free, and limits on it."""
    free = _meminfo("MemAvailable")
    limits = [value for value in (memory_limit(), _limit(resource.RLIMIT_AS)) if value is not None]
    usable = min([free, *limits])
    said = f"{free / GIB:.1f} of {_meminfo('MemTotal') / GIB:.1f} GiB free"
    said += "".join(f", limited to {value / GIB:.1f} GiB" for value in limits if value < free)
    if usable < LEAST_MEMORY:
        return failure(said, "end other programs, or ask for more memory")
    if usable < LITTLE_MEMORY:
        return warning(said, "a small detector needs 2 to 4 GiB for each rank")
    return good(said)


def files() -> Finding:
    """Check how many files this process may open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    said = f"{_number(soft)} may be open"
    if 0 <= soft < FEW_FILES:
        return warning(said, f"worker processes may need more: ulimit -n {_number(hard)}")
    return good(said)


def disk() -> Finding:
    """Check the room where runs, kernels and temporary files go."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return warning("this user has no home folder", "set HOME or XDG_CACHE_HOME to a folder")
    places = {"here": Path.cwd(), "cache": cache, "tmp": Path(os.environ.get("TMPDIR", "/tmp"))}
    said, worst = [], None
    for name, path in places.items():
        there = next(p for p in (path, *path.parents) if p.exists())
        free = shutil.disk_usage(there).free
        said.append(f"{free / GIB:.0f} GiB {name}")
        if not os.access(there, os.W_OK):
            return failure(f"{there} ({name}) cannot be written", "choose another, or change it")
        worst = free if worst is None else min(worst, free)
    line = f"free: {', '.join(said)}"
    assert worst is not None
    if worst < LEAST_DISK:
        return failure(line, "make room: a checkpoint would not fit")
    if worst < LITTLE_DISK:
        return warning(line, "make room, or give another --work-dir")
    return good(line)


def shm(place: Path = Path("/dev/shm")) -> Finding:
    """Check the shared memory through which worker processes send images."""
    if not place.is_dir():
        return warning(f"there is no {place}", "use workers_per_gpu=0")
    total = shutil.disk_usage(place).total
    said = f"{total / GIB:.2g} GiB"
    if total < LITTLE_SHM:
        return warning(said, "docker run --shm-size 8g, or --ipc host; else workers_per_gpu=0")
    return good(said)


def cpu_quota(root: Path = _CGROUP) -> float | None:
    """Return the number of CPUs whose time the cgroup may use; None without a limit."""
    try:
        quota, period = (root / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:  # cgroup 1
        micros = int((root / "cpu/cpu.cfs_quota_us").read_text())
        return micros / int((root / "cpu/cpu.cfs_period_us").read_text()) if micros > 0 else None
    except (OSError, ValueError):
        return None


def memory_limit(root: Path = _CGROUP) -> int | None:
    """Return the bytes that the cgroup may use; None without a limit."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            value = int((root / name).read_text())
        except (OSError, ValueError):
            continue
        # cgroup 1 writes the largest number for no limit.
        return value if value < 2**60 else None
    return None


def _limit(kind: int) -> int | None:
    soft, _ = resource.getrlimit(kind)
    return None if soft == resource.RLIM_INFINITY else soft


def _number(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)


def _meminfo(name: str) -> int:
    """Return a line of ``/proc/meminfo`` in bytes."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/meminfo has no {name}")
