"""The reference has every setting and every argument that the code accepts."""

from __future__ import annotations

import argparse
import re
from dataclasses import fields

import pytest

import dq.dist
import dq.quant
from dq.detector.config.mmdet_keys import OWN_KEYS
from launcher.cli import COMMANDS, build_parsers
from launcher.config import guards, quant_settings, tracking
from launcher.sections import SECTIONS
from slurm.profile import Profile
from website import api, cluster_profile, commands, settings
from website.docstrings import meaning, summary
from website.tables import table, with_plain_bars

SETTINGS = settings.pages()[settings.PLACE]
COMMANDS_PAGE = commands.pages()[commands.PLACE]


def part(page: str, heading: str) -> str:
    """Return what is below a heading, up to the next one of its level or a higher one."""
    level = heading.index(" ")
    below = page.split(f"\n{heading}\n", 1)[1]
    return re.split(rf"^#{{1,{level}}} ", below, maxsplit=1, flags=re.MULTILINE)[0]


def rows(text: str) -> dict[str, list[str]]:
    """Return the cells of each row of a table by the name in its first cell."""
    found = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        name = re.match(r"\[?`([^`]+)`", cells[0]) if cells else None
        if name:
            found.setdefault(name[1], cells)
    return found


@pytest.mark.parametrize("section", [s for s in SECTIONS if not s.startswith("quant.rules.")])
def test_every_setting_has_value_default_meaning_and_source(section: str) -> None:
    found = rows(part(SETTINGS, f"## `{section}`"))
    for key in SECTIONS[section]:
        _, value, default, what, source = found[key]
        assert value
        assert default
        assert len(what) > 15, f"{section}.{key} needs a better text than {what!r}"
        assert re.fullmatch(r"\[`\w+`\]\(\.\./\.\./[\w/]+\.py\)", source)


def test_a_rule_has_the_keys_of_its_formats() -> None:
    for name in ("quant.rules.weight", "quant.rules.activation"):
        text = part(SETTINGS, f"## `{name}`")
        assert all(f"`{key}`" in text for key in SECTIONS[name])


def test_all_own_keys_of_a_config_are_there() -> None:
    assert set(rows(part(SETTINGS, "## Keys of a config"))) == set(OWN_KEYS)


def test_the_defaults_are_those_of_a_config_without_settings() -> None:
    recipe = quant_settings(None).recipe
    quant = rows(part(SETTINGS, "## `quant`"))
    for key in ("observer", "momentum", "weight_range", "outputs", "learned", "target"):
        assert quant[key][2] == f"`{getattr(recipe, key)}`"
    for key in SECTIONS["quant.weight"]:
        for name in ("weight", "activation"):
            found = rows(part(SETTINGS, f"## `quant.{name}`"))
            assert found[key][2] == f"`{getattr(getattr(recipe, name), key)}`"
    for section, read in (("guards", guards), ("tracking", tracking)):
        for key, cells in rows(part(SETTINGS, f"## `{section}`")).items():
            default = getattr(read({}), key)
            assert cells[2] == f"`{list(default) if isinstance(default, tuple) else default}`"


def test_the_names_of_choices_are_those_that_the_code_accepts() -> None:
    for name, known in settings.CHOICES.items():
        section, _, key = name.rpartition(".")
        assert key in SECTIONS[section]
        if section != "quant":
            continue
        for choice in known:
            quant_settings({key: [choice] if key == "repairs" else choice})
        with pytest.raises(ValueError, match="does not exist"):
            quant_settings({key: ["no_such_name"] if key == "repairs" else "no_such_name"})


def test_every_key_in_the_reference_is_accepted_and_others_are_not() -> None:
    for section in SECTIONS:
        if not section.startswith("quant.rules."):
            listed = rows(part(SETTINGS, f"## `{section}`").split("\n### ")[0])
            assert set(listed) == set(SECTIONS[section])
    for read, name in ((quant_settings, "quant"), (guards, "guards"), (tracking, "tracking")):
        with pytest.raises(ValueError, match=rf"{name}\.no_such_key is not a setting"):
            read({"no_such_key": 1})


def test_every_command_has_all_its_arguments() -> None:
    _, children = build_parsers()
    assert set(children) == set(COMMANDS)
    for name, parser in children.items():
        text = part(COMMANDS_PAGE, f"## `launcher {name}`")
        check(text, parser)
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for below, child in action.choices.items():
                    check(part(COMMANDS_PAGE, f"## `launcher {name} {below}`"), child)
    for heading in ("## `launcher CONFIG`", "## `launcher submit sweep`"):
        assert "`--cfg-options KEY=VALUE ...`" in part(COMMANDS_PAGE, heading)


def check(text: str, parser: argparse.ArgumentParser) -> None:
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction | argparse._SubParsersAction):
            continue
        for option in action.option_strings:
            assert re.search(rf"^\| .*`{option}[ `].*\| .{{10,}} \|$", text, re.MULTILINE), option
        name = str(action.metavar or action.dest)
        if action.choices and action.metavar is None:
            name = "{" + ",".join(action.choices) + "}"
        if not action.option_strings:
            assert re.search(rf"^\| `\[?{re.escape(name)}", text, re.MULTILINE), name


def test_the_exit_codes_are_there() -> None:
    found = re.findall(r"^\| (\d+) \| .{4,} \|$", commands.exit_codes(), re.MULTILINE)
    assert found == ["0", "1", "2", "75", "141"]


def test_every_key_of_a_cluster_profile_is_there() -> None:
    page = cluster_profile.pages()[cluster_profile.PLACE]
    assert set(rows(page)) == {each.name for each in fields(Profile)}


def test_every_public_name_of_the_library_is_there() -> None:
    pages = api.pages()
    for place, package in (("api/quant.md", dq.quant), ("api/dist.md", dq.dist)):
        found = re.findall(rf"^::: {package.__name__}\.(\w+)$", pages[place], re.MULTILINE)
        assert found == list(package.__all__)
    assert "::: dq.sync.calibrate_on_one_rank\n" in pages["api/sync.md"]
    assert "dq.sync._" not in pages["api/sync.md"]


def test_a_setting_without_a_meaning_is_an_error() -> None:
    class Section:
        """Settings.

        Attributes:
            first: What it
                does.
            second: More: of it.
        """

    assert meaning(Section, "first") == "What it does."
    assert meaning(Section, "second") == "More: of it."
    assert summary(Section) == "Settings."
    with pytest.raises(ValueError, match="does not say what third is"):
        meaning(Section, "third")


def test_bars_in_the_code_of_a_table_have_no_backslash_in_the_site() -> None:
    text = "| `a\\|b` | c\\|d |\n`e\\|f`"
    assert with_plain_bars(text) == "| `a|b` | c\\|d |\n`e\\|f`"


def test_cells_are_escaped() -> None:
    assert table(("a",), [("b|``c``",)]) == "| a |\n| --- |\n| b\\|`c` |\n"
