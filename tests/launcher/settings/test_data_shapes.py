"""All stages work with data sections that are lists or nested, on one rank and on two."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.launcher.conftest import Launch, on_ranks, write_untrained

pytestmark = pytest.mark.slow

SHAPES = """
_base_ = [{base!r}]
leaf = dict(type='VOCFolderDataset', classes={{{{_base_.classes}}}}, img_prefix={root!r})
folder = {root!r} + '/ImageSets/Main/'
train_pipeline = {{{{_base_.train_pipeline}}}}
test_pipeline = {{{{_base_.test_pipeline}}}}
few = dict(leaf, ann_file=folder + 'val.txt', pipeline=train_pipeline)
many = dict(leaf, ann_file=folder + 'train.txt', pipeline=train_pipeline)
tested = dict(leaf, ann_file=folder + 'test.txt', pipeline=test_pipeline)
data = dict(
    train=dict(_delete_=True, type='ConcatDataset', datasets=[
        many, dict(type='RepeatDataset', times=1, dataset=dict(
            type='ClassBalancedDataset', oversample_thr=0.01, dataset=[few]))]),
    val=dict(_delete_=True, type='RepeatDataset', times=3, dataset=dict(
        leaf, ann_file=[folder + 'val.txt', folder + 'test.txt'], pipeline=test_pipeline)),
    test=[tested, dict(type='ConcatDataset', datasets=[dict(tested, ann_file=folder + 'val.txt')])])
workflow = [('train', 1), ('val', 1)]
evaluation = dict(save_best='mAP')
"""


def ran(*words: object) -> tuple[int, str, str]:
    """Run the launcher on one rank with one thread; return exit code, output and error."""
    done = on_ranks(1, *words)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def shapes(config: Path, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny config with data sections that are lists or nested."""
    path = tmp_path_factory.mktemp("shapes") / "shapes.py"
    path.write_text(SHAPES.format(base=str(config), root=str(digits)))
    return path


def test_chain_of_odd_shapes_on_two_ranks(shapes: Path, tmp_path: Path) -> None:
    done = on_ranks(2, "run", shapes, "--work-dir", tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    # The sets have 24 and 7 images; 8 are drawn, four of each set.
    assert re.search(r"calibrated \d+ quantizers on 8 images", done.stdout)
    for stage in ("float", "calibrated", "qat"):
        summary = json.loads((tmp_path / stage / "summary.json").read_text())
        assert summary["metric"] == "0_mAP"
        assert {"0_mAP", "0_AP50", "1_0_mAP", "1_0_AP50"} <= set(summary["metrics"])
    assert json.loads((tmp_path / "float/run.json").read_text())["source"]["dataset_sha256"]
    # Validation losses are logged, and the best checkpoint is chosen by the first set.
    assert re.search(r"Epoch\(val\) \[1\]\[\d+\]\s+loss_cls", done.stdout)
    assert list((tmp_path / "float").glob("best_0_mAP_epoch_1.pth"))
    assert re.search(r"\| 0_mAP, % +\| float", done.stdout)


def test_gate_holds_for_every_set(shapes: Path, tmp_path: Path) -> None:
    checkpoint = write_untrained(shapes, tmp_path / "float.pth")
    where = ("--work-dir", tmp_path)
    code, _, err = ran("calibrate", shapes, "--checkpoint", checkpoint, *where)
    assert code == 0, err
    quantized = tmp_path / "calibrated/calibrated.pth"
    code, out, err = ran("export", shapes, "--checkpoint", quantized, *where)
    assert code == 0, err
    model = re.search(r"export: (\S+\.onnx)", out)
    assert model
    code, out, err = ran("eval", "--backend", "onnxruntime", model[1], *where)
    assert code == 0, err
    assert re.search(r"^0_mAP, %  fake-quantized", out, re.M)
    found = json.loads((tmp_path / "eval_onnxruntime/summary.json").read_text())
    assert {"0_mAP", "1_0_mAP"} <= set(found["metrics"])


def test_a_training_without_validation_data(config: Path, tmp_path: Path) -> None:
    path = tmp_path / "alone.py"
    path.write_text(f"_base_ = [{str(config)!r}]\ndata = dict(val=None)\n")
    code, out, err = ran("train", path, "--work-dir", tmp_path)
    assert code == 0, err
    assert out.count("nothing is evaluated while training") == 1
    assert (tmp_path / "float/float.pth").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data = dict(test=dict(_delete_=True))", "the config has no data.test section"),
        ("workflow = [('val', 1)]", "workflow is"),
        ("data = dict(val=None)\nworkflow = [('train', 1), ('val', 1)]", "no data.val section"),
        ("data = dict(test=dict(img_prefix='nowhere/'))", "nowhere"),
        ("data = dict(test_dataloader=dict(worker_per_gpu=1))", "did you mean workers_per_gpu"),
    ],
)
def test_what_cannot_be_ends_before_the_training(
    config: Path, tmp_path: Path, launch: Launch, text: str, said: str
) -> None:
    path = tmp_path / "wrong.py"
    path.write_text(f"_base_ = [{str(config)!r}]\n{text}\n")
    code, _, err = launch("train", path, "--work-dir", tmp_path)
    assert (code, len(err.splitlines())) == (2, 1), err
    assert said in err
    assert not list(tmp_path.glob("**/*.pth"))


GRAY = """
_base_ = [{base!r}]
size = (96, 96)
norm = dict(mean=[127.5], std=[127.5], to_rgb=False)
load = dict(type='LoadImageFromFile', color_type='grayscale')
train_pipeline = [
    load,
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', img_scale=size, keep_ratio=False),
    dict(type='RandomFlip', flip_ratio=0.0),
    dict(type='Normalize', **norm),
    dict(type='DefaultFormatBundle'),
    dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels']),
]
test_pipeline = [
    load,
    dict(type='MultiScaleFlipAug', img_scale=size, flip=False, transforms=[
        dict(type='Resize', keep_ratio=False),
        dict(type='Normalize', **norm),
        dict(type='ImageToTensor', keys=['img']),
        dict(type='Collect', keys=['img']),
    ])
]
data = dict(
    train=dict(dataset=dict(pipeline=train_pipeline)),
    val=dict(pipeline=test_pipeline),
    test=dict(pipeline=test_pipeline))
model = dict(backbone=dict(in_channels=1))
"""


def test_images_of_one_channel_are_trained_on_and_exported(config: Path, tmp_path: Path) -> None:
    import onnx

    path = tmp_path / "gray.py"
    path.write_text(GRAY.format(base=str(config)))
    checkpoint = write_untrained(path, tmp_path / "float.pth")
    where = ("--work-dir", tmp_path)
    code, _, err = ran("qat", path, "--checkpoint", checkpoint, *where, "--no-validate")
    assert code == 0, err
    words = ("--checkpoint", tmp_path / "qat/qat.pth", *where)
    code, out, err = ran("export", path, *words, "--decode", "nms")
    assert code == 0, err
    found = re.search(r"export: (\S+\.onnx)", out)
    assert found
    shape = onnx.load(found[1]).graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_value for d in shape][1:] == [1, 96, 96]
    code, _, err = ran("eval", "--backend", "onnxruntime", found[1], *where)
    assert code == 0, err
