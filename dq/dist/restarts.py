"""Whether torchrun or Slurm has started this job before."""

from __future__ import annotations

import functools
import logging
import os
from datetime import timedelta

import torch.distributed as dist

log = logging.getLogger(__name__)
# Both count how often they started a job again after a failure.
_COUNTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
_ANSWER = timedelta(seconds=15)


@functools.cache
def started_before() -> bool:
    """Tell whether this job has run before: after a failure, a requeue, or with other nodes.

    torchrun does not count the restarts that a node which joins brings about, so the main rank
    leaves a mark in the agent's store, which outlives them. Only the main rank's answer counts.
    """
    if any(os.environ.get(name, "0") not in ("", "0") for name in _COUNTS):
        return True
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or os.environ.get("RANK") != "0":
        return False
    try:
        store = dist.TCPStore(  # type: ignore[attr-defined]  # torch's stubs do not name it
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=_ANSWER,
        )
        starts: int = store.add(f"dq/starts/{os.environ.get('TORCHELASTIC_RUN_ID', '')}", 1)
    except (dist.DistError, KeyError, ValueError) as error:
        log.warning("whether the job ran before is not known: %s", error)
        return False
    return starts > 1
