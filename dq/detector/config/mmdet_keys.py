"""Every key that mmdet's tools read from a config, and what it does here.

``docs/mmdet_keys.md`` is written from this table. ``tests/detector/config/test_mmdet_keys.py``
compares it with mmdet's and mmcv's own code.
"""

from __future__ import annotations

from typing import NamedTuple

ACTED, OTHERWISE, REFUSED_BY_NAME = "as in mmdet", "differs", "refused"


class Key(NamedTuple):
    """A key of a config, and what it does.

    Attributes:
        name: Dotted.
        state: ``as in mmdet``, ``differs``, ``refused``, or ``ours`` for a key that mmdet lacks.
        note: What it does here; for a refused key, what to use instead.
    """

    name: str
    state: str
    note: str


KEYS = (
    Key("model", ACTED, "the detector; `model.pretrained` and every `init_cfg` in float training"),
    Key("model.pretrained", ACTED, "initial weights of the backbone; checked, see below"),
    Key("model.backbone", ACTED, "its `init_cfg` too; checked, see below"),
    Key("model.neck", ACTED, "`rfp_backbone` in it too"),
    Key("model.train_cfg", ACTED, ""),
    Key("model_wrapper", ACTED, "takes the place of `model`"),
    Key("train_cfg", ACTED, "mmdet's old place of `model.train_cfg`"),
    Key("test_cfg", ACTED, "mmdet's old place of `model.test_cfg`"),
    Key("data", ACTED, "see the keys below it"),
    Key("data.train", ACTED, ""),
    Key("data.val", ACTED, "may be absent: then training runs without validation"),
    Key("data.test", ACTED, ""),
    Key("data.samples_per_gpu", ACTED, "images per step and rank"),
    Key("data.imgs_per_gpu", ACTED, "its old name"),
    Key("data.workers_per_gpu", ACTED, "worker processes of a rank, in training and evaluation"),
    Key("data.persistent_workers", ACTED, ""),
    Key("data.train_dataloader", ACTED, "an unknown key is refused"),
    Key("data.val_dataloader", OTHERWISE, "`workers_per_gpu`; one image per batch, so that padding"
        " changes no result"),
    Key("data.test_dataloader", OTHERWISE, "as `data.val_dataloader`"),
    Key("data_root", ACTED, "`--cfg-options data_root=DIR` changes every path in `data` that"
        " begins with it; mmdet does this only for `$MMDET_DATASETS`"),
    Key("optimizer", ACTED, "with `paramwise_cfg` and mmdet's and mmcv's constructors"),
    Key("optimizer.lr", ACTED, ""),
    Key("optimizer_config", ACTED, "`grad_clip`; cumulative hooks are replaced by `accumulate`"),
    Key("fp16", OTHERWISE, "training under autocast (bfloat16 on a CPU); evaluation in float32"),
    Key("lr_config", ACTED, ""),
    Key("momentum_config", ACTED, ""),
    Key("runner", ACTED, "`EpochBasedRunner`, `IterBasedRunner`; another type is refused"),
    Key("runner.type", ACTED, ""),
    Key("runner.max_epochs", ACTED, ""),
    Key("total_epochs", ACTED, "mmdet's old name of `runner.max_epochs`; both must agree"),
    Key("workflow", ACTED, "`[('train', n)]` or `[('train', n), ('val', m)]`; mmdet has data for"
        " no others"),
    Key("evaluation", ACTED, "`None` is mmdet's default"),
    Key("evaluation.gpu_collect", OTHERWISE, "results are gathered without files or GPU"),
    Key("checkpoint_config", ACTED, "see its own table; `None`: only the last of the stage"),
    Key("checkpoint_config.meta", OTHERWISE, "mmdet overwrites it; here it is kept, besides mmdet's"
        " own (`mmdet_version`, `CLASSES`)"),
    Key("log_config", ACTED, "`None`: no logger"),
    Key("log_level", ACTED, ""),
    Key("custom_hooks", ACTED, "mmdet's and mmcv's EMA hooks keep one exact average, see below;"
        " `RFSearchHook` sets its dilations, but its search is refused"),
    Key("custom_imports", ACTED, "also from `--cfg-options`; a failure names module and reason"),
    Key("load_from", ACTED, "initial weights of a float training; the checkpoint of"
        " `calibrate` and `qat` without `--checkpoint`. A file or an address"),
    Key("resume_from", ACTED, "resumes the training that wrote it, float or quantized;"
        " `--resume` on the command line has priority, and so has a newer checkpoint of a job that"
        " was restarted"),
    Key("auto_resume", ACTED, "as `--resume`"),
    Key("seed", OTHERWISE, "mmdet's tools draw a seed and overwrite it; here it is `--seed`'s"
        " default, and 0 without it"),
    Key("deterministic", ACTED, "mmdet's flag `--deterministic` as a key"),
    Key("work_dir", ACTED, "folder of the experiment; `--work-dir` has priority"),
    Key("device", OTHERWISE, "mmdet's tools overwrite it; here it is `--device`'s default"),
    Key("gpu_ids", OTHERWISE, "mmdet's tools overwrite it; a rank uses the GPU of its local"
        " rank"),
    Key("dist_params", OTHERWISE, "`backend` follows the device: NCCL on GPUs, gloo on CPUs; other"
        " keys are refused"),
    Key("find_unused_parameters", ACTED, ""),
    Key("auto_scale_lr", ACTED, ""),
    Key("auto_scale_lr.enable", ACTED, ""),
    Key("auto_scale_lr.base_batch_size", ACTED, "without it nothing is scaled, with a warning"),
    Key("cudnn_benchmark", ACTED, ""),
    Key("opencv_num_threads", ACTED, "0 (none) by default; in worker processes too"),
    Key("mp_start_method", ACTED, "of worker processes; `fork` by default"),
    Key("timer_config", REFUSED_BY_NAME, "mmdet's tools never use it; add the hook to"
        " custom_hooks"),
    Key("profiler_config", REFUSED_BY_NAME, "mmdet's tools never use it; use custom_hooks ="
        " [dict(type='ProfilerHook', ...)]"),
)  # fmt: skip

# Keys of `checkpoint_config`: the arguments of mmcv's CheckpointHook, and our own.
CHECKPOINT_KEYS = (
    Key("interval", ACTED, "epochs, or steps if `by_epoch` is False; -1, mmcv's default, means"
        " never"),
    Key("by_epoch", ACTED, "True for `EpochBasedRunner`, False for `IterBasedRunner`"),
    Key("save_optimizer", ACTED, ""),
    Key("out_dir", ACTED, "checkpoints are in `out_dir/<experiment>/<stage>`; a folder, not an"
        " address"),
    Key("max_keep_ckpts", ACTED, "all by default, and if it is 0 or less; three if the config"
        " has no `checkpoint_config` at all"),
    Key("save_last", ACTED, ""),
    Key("sync_buffer", OTHERWISE, "always: running statistics are averaged over ranks"),
    Key("file_client_args", OTHERWISE, "the disk; another backend is refused"),
    Key("create_symlink", ACTED, "`latest.pth`"),
    Key("filename_tmpl", REFUSED_BY_NAME, "resuming needs the names epoch_N.pth and iter_N.pth"),
    Key("meta", OTHERWISE, "kept, besides mmdet's own (`mmdet_version`, `CLASSES`)"),
    Key("type", ACTED, "`CheckpointHook`; another is refused"),
    Key("steps", "ours", "steps between additional checkpoints within an epoch"),
    Key("minutes", "ours", "a checkpoint is written when the last one is this old (15)"),
)  # fmt: skip

ENVIRONMENT = (
    Key("MMDET_DATASETS", ACTED, "replaces `data_root`, in lists too"),
    Key("OMP_NUM_THREADS", ACTED, "the threads of a rank, unless `--threads` is given. If"
        " it is unset, a rank takes its share of the cores (torchrun's default of 1 does"
        " not count), and its child processes get 1"),
    Key("MKL_NUM_THREADS", OTHERWISE, "`OMP_NUM_THREADS` and `--threads` decide; child processes"
        " get 1 if it is unset"),
    Key("LOCAL_RANK", ACTED, "set by torchrun; under Slurm `SLURM_LOCALID` is read"),
)  # fmt: skip

# Our own keys, which mmdet does not have.
OWN = (
    Key("quantize", "ours", "what `launcher CONFIG` does: `False` trains in float, `True` or"
        " `'training'` trains quantization-aware, `'calibration'` calibrates"),
    Key("quant", "ours", "how the detector is quantized, calibrated and trained"),
    Key("accumulate", "ours", "micro-batches of a rank whose gradients one step sums up; a whole"
        " number, 1 by default"),
    Key("guards", "ours", "what is done about problems during a training"),
    Key("tracking", "ours", "what is recorded, and where it is sent"),
    Key("compile", "ours", "compiles the training network with `torch.compile`: `True`, or a dict;"
        " `False` by default"),
    Key("channels_last", "ours", "weights, and so activations, lie in memory with channels last"
        " in a training; `False` by default"),
    Key("allow_tf32", "ours", "whether float32 layers on a GPU may compute in TF32, whose mantissa"
        " has ten bits: `True`, `False`, or `None` for torch's default (convolutions yes, matrix"
        " products no)"),
)  # fmt: skip
OWN_KEYS = tuple(key.name for key in OWN)

TOP_LEVEL_KEYS = (
    *(key.name for key in KEYS if "." not in key.name and key.state != REFUSED_BY_NAME),
    *OWN_KEYS,
)
REFUSED = {key.name: key.note for key in KEYS if key.state == REFUSED_BY_NAME}
