"""The completion script is one that the shell itself takes, and it knows the commands."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from launcher.cli import COMMANDS
from launcher.commands.about.completion import SHELLS
from tests.launcher.conftest import Launch


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_names_commands_and_flags(shell: str, launch: Launch) -> None:
    code, out, err = launch("completion", shell)
    assert (code, err) == (0, "")
    for word in (*COMMANDS, "max-drop", "calibration-rank"):
        assert word in out


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_commands_flags_and_files(tmp_path: Path, launch: Launch) -> None:
    script = tmp_path / "launcher.bash"
    script.write_text(launch("completion", "bash")[1])
    (tmp_path / "float.pth").touch()

    def completed(*words: str) -> list[str]:
        given = " ".join(f"'{word}'" for word in ("launcher", *words))
        code = f"""
            source {script}
            COMP_WORDS=({given}); COMP_CWORD={len(words)}
            "$(complete -p launcher | sed 's/.*-F \\([^ ]*\\).*/\\1/')" launcher
            printf '%s\\n' "${{COMPREPLY[@]}}"
        """
        done = subprocess.run(
            ["bash", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout.split()

    assert completed("cali") == ["calibrate"]
    assert completed("qat", "--calibration-r") == ["--calibration-rank"]
    assert completed("qat", "config.py", "--checkpoint", "fl") == ["float.pth"]
