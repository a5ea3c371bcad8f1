"""A prepared model from a file computes in a new process what it did in the old one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
LAYERS = '''
from torch import nn
import torch.nn.functional as F

class Padding(nn.Conv2d):
    """Pads depending on the size of its input, as mmcv's Conv2dAdaptivePadding does."""

    def forward(self, x):
        return super().forward(F.pad(x, [0, -x.shape[3] % 2, 0, -x.shape[2] % 2]))

class Plain(nn.Conv2d):
    """Its own forward pass is that of torch's layer, as in mmcv's wrappers."""

    def forward(self, x):
        return super().forward(x) if x.numel() else x
'''
WRITE = """
import sys, torch
from torch import nn
from layers import Padding, Plain
from dq.quant.graph.prepare import prepare
from dq.quant.quantizers.layer_types import declare_padding_layers, declare_plain_layers
from dq.quant.recipes.recipe import Recipe
from tests.quant.nets import calibrate
declare_padding_layers(Padding)
declare_plain_layers(Plain)
net = nn.Sequential(Padding(3, 4, 3, stride=2), nn.BatchNorm2d(4), Plain(4, 2, 1)).eval()
graph = prepare(net, Recipe())
x = torch.rand(2, 3, 8, 7)
calibrate(graph, [x])
torch.save((graph, x, graph(x)), sys.argv[1])
"""
READ = """
import sys, torch
graph, x, wanted = torch.load(sys.argv[1], weights_only=False)
assert torch.equal(graph(x), wanted)
# Its layers can be found again, as the conversion to integers does.
from dq.quant.integer.convert import integer_network
assert integer_network(graph)(x).shape == wanted.shape
"""


@pytest.mark.slow  # Two processes that import torch.
def test_a_layer_that_pads_by_itself_does_so_in_a_new_process(tmp_path: Path) -> None:
    (tmp_path / "layers.py").write_text(LAYERS)
    for text in (WRITE, READ):
        done = subprocess.run(
            [sys.executable, "-c", text, str(tmp_path / "graph.pth")],
            capture_output=True, text=True, check=False, cwd=ROOT,
            env={"PYTHONPATH": f"{ROOT}:{tmp_path}", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
