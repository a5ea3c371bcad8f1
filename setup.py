"""Put `configs` into the package `dq` when it is built; everything else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithConfigs(build_py):
    """Also copies the configs, which a checkout has beside the packages."""

    def run(self) -> None:
        """Build, and copy; an editable install reads the checkout's own."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "dq", "configs")
            shutil.rmtree(target, ignore_errors=True)
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(Path(__file__).parent / "configs", target, ignore=ignored)


setup(cmdclass={"build_py": WithConfigs})
