"""The command `data`, from its arguments to its output."""

import argparse
import inspect
from pathlib import Path

import pytest

from dq.data.digits import write_digits
from dq.data.layout import image_path
from dq.data.voc import NAMES
from launcher.commands import data


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="launcher data")
    data.add_arguments(parser)
    return parser.parse_args(words)


def digits(folder: Path) -> argparse.Namespace:
    numbers = ("--num-train", "4", "--num-val", "2", "--num-test", "3", "--image-size", "64")
    return parse("digits", "--folder", str(folder), *numbers)


def test_the_defaults_are_those_of_the_function() -> None:
    of_function = {
        name: parameter.default
        for name, parameter in inspect.signature(write_digits).parameters.items()
        if name != "folder"
    }
    assert vars(parse("digits")) == of_function | {
        "dataset": "digits",
        "folder": Path("data/digits"),
    }
    assert vars(parse("digits")) == {
        "dataset": "digits",
        "folder": Path("data/digits"),
        "num_train": 600,
        "num_val": 100,
        "num_test": 200,
        "image_size": 192,
        "seed": 0,
    }


@pytest.mark.parametrize("name", NAMES)
def test_voc_has_a_folder_but_no_counts(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert vars(parse(name)) == {"dataset": name, "folder": Path("data")}
    with pytest.raises(SystemExit):
        parse(name, "--seed", "1")
    assert "unrecognized arguments: --seed" in capsys.readouterr().err


@pytest.mark.parametrize("words", [(), ("coco",), ("digits", "--num-train", "many")])
def test_wrong_arguments_are_refused_in_the_usual_way(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(*words)
    assert caught.value.code == 2
    assert "usage: launcher data" in capsys.readouterr().err


def test_digits_are_written_and_described_twice_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "digits"
    assert data.run(digits(folder)) == 0
    first = capsys.readouterr().out
    assert first.startswith(f"{folder}\n  images  train 4, val 2, trainval 6, test 3\n  boxes   ")
    assert "WRONG" not in first
    assert data.run(digits(folder)) == 0
    assert capsys.readouterr().out == first


def test_errors_are_raised_for_the_command_line_to_print(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(ValueError, match="holds something else"):
        data.run(digits(tmp_path))


def test_voc_is_fetched_and_each_year_described(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pretend(name: str, folder: Path) -> Path:
        assert name == "voc0712"
        for year in ("VOC2007", "VOC2012"):
            write_digits(
                folder / "VOCdevkit" / year, num_train=1, num_val=1, num_test=1, image_size=64
            )
        return folder / "VOCdevkit"

    monkeypatch.setattr("dq.data.voc.fetch_voc", pretend)
    arguments = parse("voc0712", "--folder", str(tmp_path))
    assert data.run(arguments) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == str(tmp_path / "VOCdevkit/VOC2007")
    assert printed[3] == str(tmp_path / "VOCdevkit/VOC2012")
    assert len(printed) == 6


def test_a_broken_data_set_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "VOCdevkit" / "VOC2012"
    write_digits(folder, num_train=1, num_val=1, num_test=1, image_size=64)
    image_path(folder, "test_00000").unlink()
    monkeypatch.setattr("dq.data.voc.fetch_voc", lambda name, folder: folder)
    assert data.run(parse("voc2012", "--folder", str(tmp_path))) == 1
    assert "WRONG   1 image " in capsys.readouterr().out


def test_the_help_is_one_line() -> None:
    assert "\n" not in data.HELP
    public = {
        name
        for name, value in vars(data).items()
        if callable(value) and value.__module__ == data.__name__ and not name.startswith("_")
    }
    assert public == {"add_arguments", "run"}
