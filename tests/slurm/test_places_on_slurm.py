"""Which process is which rank on a real Slurm, in every way to start one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launcher.conftest import ROOT
from tests.slurm.cluster import Cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

# Prints [rank, world size, local rank, local world size, node, nodes], or the error's line.
WHO = """
import dataclasses, json
from dq.dist.rendezvous.environment import read_environment
try:
    print("@", json.dumps(list(dataclasses.asdict(read_environment()).values())), flush=True)
except ValueError as error:
    print("@", json.dumps(str(error)), flush=True)
"""
ALONE = [0, 1, 0, 1, 0, 1]
TWO_NODES = [[0, 2, 0, 1, 0, 2], [1, 2, 0, 1, 1, 2]]
ALLOCATE = "salloc -Q -p main -N2 -n4"


@pytest.fixture(scope="module")
def who(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("who") / "who"
    path.write_text(f"#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -c '{WHO}'\n")
    path.chmod(0o755)
    return path


def places(cluster: Cluster, command: str, **variables: str) -> list[object]:
    """Return the sorted output of all processes of a command."""
    done = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **cluster.environ, **variables},
    )
    # A terminal may have echoed something before it.
    lines = [line.partition("@ ")[2] for line in done.stdout.splitlines() if "@ " in line]
    assert lines, done.stdout + done.stderr
    return sorted((json.loads(line) for line in lines), key=str)


@pytest.mark.parametrize(
    ("command", "wanted"),
    [
        (f"{ALLOCATE} {{who}}", [ALONE]),
        (f"{ALLOCATE} srun -n1 -N1 {{who}}", [ALONE]),
        (f"{ALLOCATE} srun -n2 -N1 {{who}}", [[0, 2, 0, 2, 0, 1], [1, 2, 1, 2, 0, 1]]),
        (
            f"{ALLOCATE} srun -n3 {{who}}",
            [[0, 3, 0, 2, 0, 2], [1, 3, 1, 2, 0, 2], [2, 3, 0, 1, 1, 2]],
        ),
        (f"{ALLOCATE} srun -n2 -N2 bash -c '{{who}}; true'", TWO_NODES),
        ("srun -p main -n1 {who}", [ALONE]),
        ("srun -p main -N2 -n2 --mpi=pmi2 {who}", TWO_NODES),
    ],
)  # fmt: skip
def test_each_process_knows_its_place(
    cluster: Cluster, who: Path, command: str, wanted: list[list[int]]
) -> None:
    assert places(cluster, command.format(who=who)) == wanted


def test_a_batch_script_is_alone_unless_it_has_half_a_step_of_another(
    cluster: Cluster, who: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    batch = f"sbatch -W -p main -N2 -n4 -o {out} {who} >/dev/null; cat {out}"
    assert places(cluster, batch) == [ALONE]
    # Submitted from a task, it inherits the variables of that task's step.
    batch = f"sbatch -W -p frail -n1 -o {out}-%j {who} > /dev/null; cat {out}-*"
    inside = f"srun -p main -N2 -n2 bash -c 'if [ $SLURM_PROCID = 1 ]; then {batch}; fi'"
    (found,) = places(cluster, inside)
    assert "left over from another step" in str(found)


def test_what_has_outlived_its_step_or_is_one_shell_of_several_is_no_rank(
    cluster: Cluster, who: Path, tmp_path: Path
) -> None:
    # Like screen or tmux: started in a task that ends.
    out = tmp_path / "out"
    later = f"setsid bash -c 'sleep 1; {who} > {out} 2>&1' & sleep 0.2"
    (tmp_path / "task").write_text(f"#!/bin/bash\n[ $SLURM_PROCID = 1 ] && {later}\nexit 0\n")
    (tmp_path / "task").chmod(0o755)
    waits = f"srun -p main -n2 {tmp_path}/task; for i in $(seq 50); do [ -s {out} ] && break;"
    (found,) = places(cluster, f"{waits} sleep 0.2; done; sleep 0.2; cat {out}")
    assert "which this process does not belong to" in str(found)
    typed = f"script -qec \"srun -p main -n2 --pty bash -c '{who}; true'\" /dev/null"
    assert any("srun --pty" in str(one) for one in places(cluster, typed))
