"""``launcher CONFIG`` without a command: the config's ``quantize`` flag decides."""

from __future__ import annotations

from collections.abc import Sequence

from launcher.config import command_for


def resolve(words: Sequence[str]) -> list[str]:
    """Return the command line with the command that the config asks for.

    The checkpoint that calibration and QAT begin with is ``--checkpoint``, else the config's
    ``load_from``.

    Args:
        words: The config and further arguments.

    Raises:
        ValueError: The config cannot be read, the flag has an unknown value, or there is no
            checkpoint to begin with.
    """
    from dq.detector.config import read_config

    config = read_config(words[0])
    command = command_for(config.get("quantize", False))
    line = [command, *words]
    if command != "train" and not any(w.split("=")[0] == "--checkpoint" for w in words):
        if not config.get("load_from"):
            raise ValueError(
                f"{words[0]} has quantize={config.quantize!r}, which begins with a float"
                " checkpoint: give --checkpoint FILE.pth or set load_from in the config"
            )
        line += ["--checkpoint", config.load_from]
    return line
