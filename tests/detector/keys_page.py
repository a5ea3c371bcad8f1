"""Write ``docs/mmdet_keys.md`` from the tables: ``python -m tests.detector.keys_page``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dq.detector.config.mmdet_flags import ACCEPTED_FLAGS, REFUSED_FLAGS
from dq.detector.config.mmdet_keys import CHECKPOINT_KEYS, ENVIRONMENT, KEYS, Key
from launcher.cli import build_parsers

PAGE = Path(__file__).resolve().parents[2] / "docs/mmdet_keys.md"
BEGIN = """\
# What mmdet's keys do here

Every key that mmdet 2.28.2 reads in `tools/train.py`, `tools/test.py`, `mmdet.apis`,
`compat_cfg`, `replace_cfg_vals`, `update_data_root`, `setup_multi_processes` and
`register_training_hooks`, and what it does here. A test reads their code and fails if a key, a
flag or a variable is in none of these tables. The page is written from the tables that the
launcher itself uses (`dq/detector/config/mmdet_keys.py`, `python -m tests.detector.keys_page`).

`--cfg-options` are applied to the config before anything is read from it: before `quantize`
decides what `launcher CONFIG` does, before `custom_imports` are imported and `${...}` is
resolved. The order of words on the command line does not matter. `work_dir`, `data_root`,
`load_from`, `resume_from` and all others may be given there.

"""
MORE = """
## Details

**Resuming.** `resume_from` (or `--resume FILE`) names a checkpoint of this launcher or of plain
mmdet. It is used by the training that wrote it. In `run`, a float checkpoint resumes the float
training, and the quantized training starts after it; a quantized checkpoint resumes the quantized
training. `--resume FILE` has priority over the newest checkpoint of the stage (`--resume`,
`auto_resume`, or a restarted job), which has priority over `resume_from`. What may have changed
since is in [faults.md](faults.md#resuming).

**Initial weights.** The file of each `init_cfg` of type `Pretrained` is checked before anything is
loaded. A missing file, an address that cannot be fetched, a prefix that is not in the file, and
weights of another network (fewer than half of the module's weights fit) end the job with one line
and exit code 2. mmcv would load the weights that fit and log the rest. To load only a part, use
`load_from`, which loads the weights that fit and logs how many did not. Addresses (`https://`,
`torchvision://`, `open-mmlab://`, `mmcls://`) are downloaded once, into torch's cache.

**Values of another type.** A text where a key needs a whole number (`runner.max_epochs`,
`workers_per_gpu`, `samples_per_gpu`, `accumulate`, `evaluation.interval`, `log_config.interval`,
`cumulative_iters` of mmcv's cumulative hooks, ...), a number where a path belongs (`data_root`,
`load_from`, `resume_from`, `work_dir`), anything but `True` and `False` for a flag, or a
`grad_clip` without `max_norm` ends the job with one line that names the key, and exit code 2. So do
wrong values in the launcher's own sections. What mmdet reads alone is not checked.

**EMA hooks.** `ExpMomentumEMAHook`, `LinearMomentumEMAHook` and mmcv's `EMAHook` are replaced by
one average with the hook's own rule (momentum, warm-up, interval, `skip_buffers`), in float and in
quantized training. As in mmdet, the average is evaluated and written as the detector's weights.
Unlike in mmdet, the state dict has no `ema_*` entries, so that plain mmdet loads it strictly. A
resumed training continues with its own weights, not with the averaged ones. `quant.ema` has
priority in quantized training, and a recipe with 4-bit weights leaves the hook out
([why](qat.md#the-average-of-4-bit-weights)). With `IterBasedRunner`, mmdet's hooks never use the
average for evaluation; here it is used.

**`quant.training`** holds overrides of the config for the quantized training: dotted keys
(`"optimizer.lr": 1e-3`), or whole sections, also as replacements
(`optimizer=dict(_delete_=True, type="AdamW", lr=1e-4)`). mmdet's old names
(`data.samples_per_gpu`, `total_epochs`) are accepted. A key that a quantized training does not
read (`model`, `data.test`, `seed`, ...) is refused.

**`checkpoint_config`** means the same as in mmcv. Additional checkpoints for resuming
(`step_N.pth`: at a signal, before an evaluation, every `steps` steps or `minutes`) do not count for
`max_keep_ckpts`; the last two of them are kept.
"""


def page() -> str:
    """Return the page's text."""
    _, children = build_parsers()
    ours = {name for child in children.values() for name in child._option_string_actions}
    flags = [Key(name, "as in mmdet", note) for name, note in ACCEPTED_FLAGS.items()]
    flags += [
        Key(name, "as in mmdet", "the same") if name in ours else Key(name, "refused", note)
        for name, note in REFUSED_FLAGS.items()
    ]
    return (
        BEGIN
        + "## Keys of a config\n\n"
        + _table(KEYS)
        + "\n## `checkpoint_config`\n\n"
        + _table(CHECKPOINT_KEYS)
        + "\n## Variables of the environment\n\n"
        + _table(ENVIRONMENT)
        + "\n## Flags of `tools/train.py` and `tools/test.py`\n\n"
        + _table(flags)
        + MORE
    )


def _table(keys: Iterable[Key]) -> str:
    rows = [f"| `{key.name}` | {key.state} | {key.note} |" for key in keys]
    return "\n".join(["| name | here | what it does |", "| --- | --- | --- |", *rows, ""])


if __name__ == "__main__":
    PAGE.write_text(page())
