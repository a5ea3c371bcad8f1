"""An address that no server can have is refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dq.detector.config.addresses import local_file


@pytest.mark.parametrize("name", ["http://host:abc/x.pth", "http://localhost:1/a b/x.pth"])
def test_a_broken_address_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python's HTTP client refuses it with an error that is neither OSError nor ValueError."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ValueError, match=r"x\.pth cannot be fetched \("):
        local_file(name)
