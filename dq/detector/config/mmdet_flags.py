"""The flags of mmdet's ``tools/train.py`` and ``tools/test.py``, and what they do here."""

from __future__ import annotations

# Accepted flags, with what they do here.
ACCEPTED_FLAGS = {
    "--work-dir": "the same",
    "--resume-from": "`--resume FILE`",
    "--auto-resume": "`--resume`",
    "--no-validate": "the same",
    "--seed": "the same; 0 by default, not drawn",
    "--deterministic": "the same, also as a key `deterministic = True`",
    "--cfg-options": "the same, but applied to the config before anything is read from it",
    "--auto-scale-lr": "the same, also as `--cfg-options auto_scale_lr.enable=True`",
}
_GPUS = "choose GPUs with CUDA_VISIBLE_DEVICES, and how many with torchrun --nproc-per-node"
_RANKS = "start with torchrun or srun; ranks read their number from the environment"
# Refused flags, with what to use instead.
REFUSED_FLAGS = {
    "--gpus": _GPUS,
    "--gpu-id": _GPUS,
    "--gpu-ids": _GPUS,
    "--launcher": _RANKS,
    "--local_rank": _RANKS,
    "--local-rank": _RANKS,
    "--diff-seed": "leave it out: every rank always has a seed of its own, derived from --seed",
    "--options": "use --cfg-options",
    "--fuse-conv-bn": "leave it out: quantization folds batch norms into their convolutions",
    "--show": "leave it out: drawn predictions are in the work dir after every evaluation",
    "--gpu-collect": "leave it out: results are gathered without files or GPU",
    "--tmpdir": "leave it out: results are gathered without files",
}
