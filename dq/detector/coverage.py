"""Which families of mmdet's shipped configs can be quantized: try one of each, write a table."""

from __future__ import annotations

import datetime
import logging
import multiprocessing
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mmcv
import mmdet
import torch

from dq.detector.config import did_you_mean
from dq.detector.probe import CRASHED, OK, PARTLY, REFUSED, Verdict, report

log = logging.getLogger(__name__)

# Folders that hold no model of their own: parts of configs, and data sets' variants without one.
NO_FAMILY = ("_base_", "common")
# Where the smallest name would not be the smallest or plainest model.
CHOSEN = {
    "dcn": "mask_rcnn_r50_fpn_dconv_c3-c5_1x_coco.py",
    "dcnv2": "faster_rcnn_r50_fpn_mdconv_c3-c5_1x_coco.py",
    "detectors": "cascade_rcnn_r50_rfp_1x_coco.py",
    "fcos": "fcos_center-normbbox-centeronreg-giou_r50_caffe_fpn_gn-head_1x_coco.py",
    "hrnet": "faster_rcnn_hrnetv2p_w18_1x_coco.py",
    "pvt": "retinanet_pvt-t_fpn_1x_coco.py",
    "res2net": "faster_rcnn_r2_101_fpn_2x_coco.py",
    "ssd": "ssdlite_mobilenetv2_scratch_600e_coco.py",
    "yolo": "yolov3_mobilenetv2_320_300e_coco.py",
    "yolox": "yolox_nano_8x8_300e_coco.py",
}
# The smaller of these a name contains, the smaller the model.
_SIZES = (
    "nano",
    "tiny",
    "r18",
    "mobilenet",
    "swin-t",
    "_b0",
    "hrnetv2p_w18",
    "400MF",
    "r50",
    "s50",
)


def configs_folder() -> Path:
    """Return the folder of the configs that mmdet's wheel ships."""
    return Path(mmdet.__file__).parent / ".mim" / "configs"


def representatives(families: Sequence[str] = ()) -> dict[str, Path]:
    """Return one config of each family, by the family's name.

    Args:
        families: Which; all when empty.

    Raises:
        ValueError: There is no such family.
    """
    found = {}
    for folder in sorted(p for p in configs_folder().iterdir() if p.is_dir()):
        files = sorted(folder.glob("*.py"))
        if folder.name not in NO_FAMILY and files:
            named = folder / CHOSEN.get(folder.name, "")
            found[folder.name] = named if named.is_file() else min(files, key=_size)
    for name in families:
        if name not in found:
            raise ValueError(
                f"there is no family {name!r} in {configs_folder()}{did_you_mean(name, found)}"
            )
    return {name: path for name, path in found.items() if not families or name in families}


def _size(path: Path) -> tuple[int, int, str]:
    rank = next((i for i, size in enumerate(_SIZES) if size in path.stem), len(_SIZES))
    return rank, len(path.stem), path.stem


def cover(
    configs: Mapping[str, Path], *, jobs: int, limit_s: float, limit_mib: int
) -> dict[str, Verdict]:
    """Probe every config in a process of its own, so that a crash or a hang is a row.

    Args:
        configs: By family.
        jobs: How many processes at a time.
        limit_s: Seconds for each.
        limit_mib: Resident memory for each, in MiB.
    """

    def one(item: tuple[str, Path]) -> tuple[str, Verdict]:
        verdict = probe_apart(item[1], limit_s=limit_s, limit_mib=limit_mib)
        log.info("%s: %s %s", item[0], verdict.verdict, verdict.what)
        return item[0], verdict

    with ThreadPoolExecutor(jobs) as pool:
        return dict(pool.map(one, configs.items()))


def probe_apart(path: Path, *, limit_s: float, limit_mib: int) -> Verdict:
    """Probe one config in a process of its own; see `cover`."""
    # Forked from a server that has imported everything, since imports would take half of the time.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dq.detector.probe"])
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=report, args=(str(path), sender), daemon=True)
    began = time.monotonic()
    child.start()
    sender.close()
    reason = ""
    while child.is_alive() and not receiver.poll(0.2):
        if time.monotonic() - began > limit_s:
            reason = f"took more than {limit_s:.0f} s"
        elif _resident_mib(child.pid) > limit_mib:
            reason = f"took more than {limit_mib} MiB"
        if reason:
            child.kill()
            break
    try:
        verdict = Verdict(verdict=CRASHED, what=reason) if reason else receiver.recv()
    except EOFError:
        child.join()
        verdict = Verdict(verdict=CRASHED, what=f"the process ended with {child.exitcode}")
    child.join(5)
    assert isinstance(verdict, Verdict)
    return verdict


def _resident_mib(pid: int | None) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    resident = re.search(r"VmRSS:\s*(\d+)", status)
    return int(resident[1]) // 1024 if resident else 0


def rows_of(text: str) -> tuple[dict[str, Path], dict[str, Verdict]]:
    """Return configs and verdicts of a table that `table` wrote."""
    configs, verdicts = {}, {}
    for row in re.findall(r"^\| (\S+) \| (\S+) \| ([\w ]+) \| (\d+) \| (.*) \|$", text, re.M):
        name, config, verdict, quantizers, what = row
        configs[name] = configs_folder() / name / f"{config}.py"
        verdicts[name] = Verdict(
            verdict=verdict, quantizers=int(quantizers), what=what.replace("\\|", "|").strip()
        )
    return configs, verdicts


def table(
    configs: Mapping[str, Path],
    verdicts: Mapping[str, Verdict],
    *,
    today: Callable[[], datetime.date] = datetime.date.today,
) -> str:
    """Return the Markdown table of all verdicts, with date and versions."""
    counts = Counter(verdict.verdict for verdict in verdicts.values())
    totals = ", ".join(f"{counts[kind]} {kind}" for kind in (OK, PARTLY, REFUSED, CRASHED))
    lines = [
        "# Coverage of mmdet's configs",
        "",
        "One config of each family that mmdet ships, with random weights and random images: built,"
        " traced, prepared (int8), calibrated, one quantized training step and inference.",
        "**OK**: all that has weights is quantized. **Partly float**: it trains and detects, and"
        " the parts named run in float. Made by `python -m launcher coverage`.",
        "",
        f"{today().isoformat()}, mmdet {mmdet.__version__}, mmcv-full {mmcv.__version__},"
        f" torch {torch.__version__}: {len(verdicts)} families, {totals}.",
        "",
        "| family | config | result | quantizers | what |",
        "|---|---|---|---:|---|",
    ]
    for name, verdict in sorted(verdicts.items()):
        what = verdict.what.replace("|", "\\|").replace("\n", " ")
        lines.append(
            f"| {name} | {configs[name].stem} | {verdict.verdict} | {verdict.quantizers} | {what} |"
        )
    return "\n".join(lines) + "\n"
