"""The order of words on a command line does not matter."""

from __future__ import annotations

from itertools import permutations

import pytest

from launcher.cli import COMMANDS, build_parsers
from launcher.command_line.words import ordered

PARTS = (
    ["--cfg-options", "optimizer.lr=0.1", "runner.max_epochs=2"],
    ["--seed", "3"],
    ["--resume"],
    ["--work-dir", "train"],
    ["configs/a.py"],
)


def test_every_order_is_the_same_command() -> None:
    parser, children = build_parsers()
    found = set()
    for number, parts in enumerate(permutations([["qat"], *PARTS])):
        if number % 7:  # A part of the 720 orders is enough.
            continue
        words = [word for part in parts for word in part]
        given = parser.parse_args(ordered(words, children))
        assert given.cfg_options == ["optimizer.lr=0.1", "runner.max_epochs=2"]
        found.add((given.command, given.config, given.seed, given.resume, given.work_dir))
    assert found == {("qat", "configs/a.py", 3, "auto", "train")}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("a.py", "auto a.py"),
        ("--seed 1 a.py", "auto a.py --seed 1"),
        ("--cfg-options quantize=calibration a.py", "auto a.py --cfg-options quantize=calibration"),
        ("--resume a.pth a.py train", "train a.py --resume a.pth"),
        ("--debug jobs", "jobs --debug"),
        ("--help", "--help"),
        ("train --help", "train --help"),
        ("eval --backend onnxruntime --cfg-options a=1 m.onnx", "eval m.onnx --backend onnxruntime"
         " --cfg-options a=1"),
        ("export --size 3 4 a.py --checkpoint x.pth", "export a.py --size 3 4 --checkpoint x.pth"),
        ("init --size 96 photos --out a.py", "init photos --size 96 --out a.py"),
        ("--size 96 init photos", "init photos --size 96"),
        ("compare --json a.json runs", "compare runs --json a.json"),
        ("--json a.json compare runs", "compare runs --json a.json"),
        ("doctor --json", "doctor --json"),
        ("--json doctor", "doctor --json"),
        ("data --folder x digits --num-train 3", "data --folder x digits --num-train 3"),
        ("--nodes 2 submit run a.py --seed 1", "submit --nodes 2 run a.py --seed 1"),
        ("submit --nodes 2 train --seed 1 a.py", "submit --nodes 2 train --seed 1 a.py"),
        ("train --cfg-options load_from=a.py x.yaml", "train x.yaml --cfg-options load_from=a.py"),
        ("train --cfg-options optimizer.lr", "train --cfg-options optimizer.lr"),
        ("compare --csv out.csv a b --details 3", "compare a b --csv out.csv --details 3"),
    ],
)  # fmt: skip
def test_words_are_put_in_order(words: str, expected: str) -> None:
    _, children = build_parsers()
    assert ordered(words.split(), children) == expected.split()


def test_nothing_is_added_or_lost() -> None:
    _, children = build_parsers()
    for command in COMMANDS:
        words = [command, "x", "--debug"]
        assert sorted(ordered(words, children)) == sorted(words)
