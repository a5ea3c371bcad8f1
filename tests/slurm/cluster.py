"""A real Slurm on this machine: Debian's packages, a controller and four nodes, no systemd."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGES = ("munge", "slurmctld", "slurmd", "slurm-client")
HOSTS = Path("/etc/hosts")
MARK = "# dq-launcher's tests"
NODES = ("dqn1", "dqn2", "dqn3", "dqn4")

CONF = """
ClusterName=dqtest
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmctldPort={port}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=2
SlurmctldParameters=preempt_send_user_signal
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=5
MinJobAge=3600
EnforcePartLimits=ALL
{nodes}
PartitionName=main Nodes=dqn[1-2] Default=YES MaxTime=60 State=UP
PartitionName=low Nodes=dqn3 MaxTime=60 State=UP PriorityTier=1 GraceTime=90
PartitionName=high Nodes=dqn3 MaxTime=60 State=UP PriorityTier=10 PreemptMode=OFF
PartitionName=swept Nodes=dqn[3-4] MaxTime=60 State=UP PriorityTier=1 GraceTime=90
PartitionName=urgent Nodes=dqn[3-4] MaxTime=60 State=UP PriorityTier=10 PreemptMode=OFF
PartitionName=frail Nodes=dqn4 MaxTime=60 State=UP
"""


@dataclass(frozen=True, slots=True)
class Cluster:
    """A running cluster; commands need ``SLURM_CONF`` in their environment.

    Attributes:
        folder: Folder of all its files.
    """

    folder: Path

    @property
    def environ(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def ask(self, *command: str) -> str:
        """Return the output of a Slurm command."""
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={**os.environ, **self.environ},
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def state(self, job_id: str) -> str:
        return self.ask("squeue", "-h", "-t", "all", "-o", "%T", "-j", job_id)

    def restarts(self, job_id: str) -> int:
        shown = self.ask("scontrol", "-o", "show", "job", job_id)
        return int(shown.split("Restarts=")[1].split()[0])

    def await_state(self, job_id: str, *wanted: str, limit_s: float = 240.0) -> str:
        """Return a job's state once it is one of ``wanted``."""
        end = time.monotonic() + limit_s
        while (state := self.state(job_id)) not in wanted:
            assert time.monotonic() < end, f"job {job_id} is still {state}, not {wanted}"
            time.sleep(0.3)
        return state

    def processes(self, job_id: str | None = None) -> list[int]:
        """Return the processes of a job, or of all jobs, batch scripts included."""
        wanted = [f"SLURM_CONF={self.folder}/slurm.conf".encode(), b"SLURM_JOB_ID="]
        if job_id:
            wanted[1] += job_id.encode()
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                variables = (path / "environ").read_bytes().split(b"\0")
                if all(any(v == w or (v.startswith(w) and not job_id) for v in variables)
                       for w in wanted):  # fmt: skip
                    found.append(int(path.name))
        return found


@contextlib.contextmanager
def running_cluster() -> Iterator[Cluster]:
    """Start a cluster; stop it with everything that runs on it, and leave no file.

    Skips the test if this process may not install or start it.
    """
    _install()
    folder = Path(tempfile.mkdtemp(prefix="dq-slurm-"))
    folder.chmod(0o755)
    cluster = Cluster(folder)
    daemons: list[subprocess.Popen[bytes]] = []
    _add_hosts()
    try:
        _configure(folder)
        _start_munge(folder, daemons)
        environ = {**os.environ, **cluster.environ}
        for command in (["slurmctld", "-D"], *(["slurmd", "-D", "-N", name] for name in NODES)):
            with (folder / "daemons.txt").open("ab") as log:
                daemons.append(subprocess.Popen(command, env=environ, stdout=log, stderr=log))
        _await_nodes(cluster, daemons)
        yield cluster
    finally:
        _take_down(cluster, daemons)
        _remove_hosts()
        shutil.rmtree(folder, ignore_errors=True)


def _install() -> None:
    if os.geteuid() != 0:
        pytest.skip("a Slurm of our own needs root, to install Debian's packages and start daemons")
    needed = ("munged", "slurmctld", "slurmd", "sbatch")
    if all(shutil.which(name) for name in needed):
        return
    if shutil.which("apt-get") is None:
        pytest.skip("a Slurm of our own is installed with apt-get, which is not here")
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (
        ["apt-get", "update", "-q"],
        ["apt-get", "install", "-qy", "--no-install-recommends", *PACKAGES],
    ):
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"{' '.join(command[:2])} failed: {done.stderr.strip()[-300:]}")


def _add_hosts() -> None:
    lines = [f"127.0.1.{9 + i} {name} {MARK}\n" for i, name in enumerate(NODES)]
    end = "" if HOSTS.read_text().endswith("\n") else "\n"
    with HOSTS.open("a") as file:
        file.write(end + "".join(lines))


def _remove_hosts() -> None:
    lines = HOSTS.read_text().splitlines(keepends=True)
    # In place, and never empty: tests in other processes look up localhost.
    with HOSTS.open("r+") as file:
        file.write("".join(line for line in lines if MARK not in line))
        file.truncate()


def _configure(folder: Path) -> None:
    for name in ("state", "gpu", *(f"spool.{node}" for node in NODES)):
        (folder / name).mkdir()
    for number in range(2):
        os.mknod(folder / "gpu" / str(number), 0o20666, os.makedev(1, 3))  # null devices
    ports = _free_ports(1 + len(NODES))
    host = socket.gethostname().split(".")[0]
    nodes = "\n".join(
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2"
        " RealMemory=4000 Gres=gpu:2"
        for name, port in zip(NODES, ports[1:], strict=True)
    )
    (folder / "slurm.conf").write_text(
        CONF.format(host=host, folder=folder, port=ports[0], nodes=nodes)
    )
    (folder / "gres.conf").write_text(f"NodeName=dqn[1-4] Name=gpu File={folder}/gpu/[0-1]\n")


def _free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _start_munge(folder: Path, daemons: list[subprocess.Popen[bytes]]) -> None:
    home = folder / "munge"
    home.mkdir(mode=0o700)
    (home / "key").write_bytes(os.urandom(128))
    (home / "key").chmod(0o400)
    command = ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket"]
    command += [f"--{name}-file={home}/{name}" for name in ("key", "seed", "pid", "log")]
    with (folder / "daemons.txt").open("ab") as log:
        daemons.append(subprocess.Popen(command, stdout=log, stderr=log))
    _until((folder / "munge.socket").exists, "munged", folder)


def _await_nodes(cluster: Cluster, daemons: list[subprocess.Popen[bytes]]) -> None:
    def idle() -> bool:
        assert all(daemon.poll() is None for daemon in daemons)
        with contextlib.suppress(AssertionError):
            return cluster.ask("sinfo", "-hN", "-o", "%N %T").count("idle") >= len(NODES)
        return False

    _until(idle, "the nodes", cluster.folder)


def _until(holds: object, what: str, folder: Path) -> None:
    end = time.monotonic() + 60
    while not holds():  # type: ignore[operator]
        if time.monotonic() > end:
            logs = "".join(p.read_text()[-1500:] for p in folder.glob("*.log"))
            raise RuntimeError(f"{what} did not come up: {logs}")
        time.sleep(0.1)


def _take_down(cluster: Cluster, daemons: list[subprocess.Popen[bytes]]) -> None:
    with contextlib.suppress(Exception):
        cluster.ask("scancel", "--user=root")
    end = time.monotonic() + 15
    while cluster.processes() and time.monotonic() < end:
        time.sleep(0.2)
    for daemon in reversed(daemons):
        daemon.terminate()
    for daemon in daemons:
        try:
            daemon.wait(timeout=10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
    for pid in cluster.processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
