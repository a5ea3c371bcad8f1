"""Writes ``docs/mmdet_keys.md`` from the tables: ``python -m tests.detector.keys_page``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dq.detector.config.mmdet_flags import ACCEPTED_FLAGS, REFUSED_FLAGS
from dq.detector.config.mmdet_keys import CHECKPOINT_KEYS, ENVIRONMENT, KEYS, Key
from launcher.cli import build_parsers

PAGE = Path(__file__).resolve().parents[2] / "docs/mmdet_keys.md"
BEGIN = """\
# What becomes of mmdet's keys

Every key that mmdet 2.28.2 acts on in `tools/train.py`, `tools/test.py`, `mmdet.apis`,
`compat_cfg`, `replace_cfg_vals`, `update_data_root`, `setup_multi_processes` and
`register_training_hooks`, and what it does here. A test reads their code and fails where a key, a
flag or a variable is in none of these tables; the page is written from the tables that the
launcher itself uses (`dq/detector/config/mmdet_keys.py`, `python -m tests.detector.keys_page`).

`--cfg-options` are laid over the config before anything is read from it: before `quantize`
decides what `launcher CONFIG` does, before `custom_imports` are imported and `${...}` is
resolved. The order of words on the command line does not matter. `work_dir`, `data_root`,
`load_from`, `resume_from` and all others may be given there.

"""
MORE = """
## Where this is more than a word

**Going on.** `resume_from` (or `--resume FILE`) names a checkpoint of this launcher or of plain
mmdet. It is taken by the training that wrote it: in `run`, the float training goes on from a
float one and the quantized training begins after it; a quantized one is left for the quantized
training. First comes `--resume FILE`, then the newest checkpoint of the stage (`--resume`,
`auto_resume`, or a job that was started again), then `resume_from`.

**Initial weights.** Each `init_cfg` of type `Pretrained` is looked at before anything is loaded.
A missing file, an address that cannot be fetched, a prefix that is not in the file, and weights
of another network (fewer than half of the module's own fit) end the job with one line and exit
code 2. mmcv would load what happens to fit and log the rest. Weights that are to fit partly can
be given as `load_from`, which takes what fits and says how much did not. Addresses (`https://`,
`torchvision://`, `open-mmlab://`, `mmcls://`) are fetched once, into torch's cache.

**EMA hooks.** `ExpMomentumEMAHook`, `LinearMomentumEMAHook` and mmcv's `EMAHook` are done by one
average with the hook's own rule (momentum, warm-up, interval, `skip_buffers`), in float and in
quantized training. It is what is evaluated and written as the detector's weights, as in mmdet.
Unlike there the state dict has no `ema_*` entries, so that plain mmdet loads it strictly, and a
resumed training goes on with its own weights and not with the averaged ones. `quant.ema` goes
first in quantized training. With `IterBasedRunner` mmdet's hooks never put the average in place;
here it is.

**`quant.training`** lays overrides over the config for the quantized training: dotted keys
(`"optimizer.lr": 1e-3`), or whole sections, also in place of what was there
(`optimizer=dict(_delete_=True, type="AdamW", lr=1e-4)`). mmdet's old names
(`data.samples_per_gpu`, `total_epochs`) are followed. A key that a quantized training does not
read (`model`, `data.test`, `seed`, ...) is refused.

**`checkpoint_config`** means what it means in mmcv. What is written besides, to go on from
(`step_N.pth`: at a signal, before an evaluation, every `steps` steps or `minutes`), is no part of
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
