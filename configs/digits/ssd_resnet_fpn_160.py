# Handwritten digits over photographs, the embedded data set (`python -m launcher data digits`):
# SSD-FPN with a narrow ResNet18 at 160x160, trained from scratch within minutes on two CPU ranks.
_base_ = [
    "../_base_/ssd_mobilenet_fpn_256.py",
    "../_base_/voc_folder_256.py",
    "../_base_/schedule_small.py",
    "../_base_/runtime.py",
]
data_root = "data/digits"
classes = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
model = dict(
    backbone=dict(
        _delete_=True,
        type="ResNet",
        depth=18,
        base_channels=32,
        stem_channels=32,
        out_indices=(1, 2, 3),
        frozen_stages=-1,
        norm_cfg=dict(type="BN", requires_grad=True),
        norm_eval=False,
        init_cfg=None,
    ),
    neck=dict(in_channels=[64, 128, 256], num_outs=3),
    bbox_head=dict(
        num_classes=10,
        in_channels=(64, 64, 64),
        # Fitted to the digits, as `launcher init` does. With SSD's default anchors a training of
        # this length ends 16 points lower.
        anchor_generator=dict(
            _delete_=True,
            type="YOLOAnchorGenerator",
            strides=[8, 16, 32],
            base_sizes=[
                [(12, 22), (13, 21), (18, 29), (23, 37)],
                [(26, 42), (28, 45), (32, 48), (35, 52)],
                [(52, 85), (57, 90), (63, 97), (70, 103)],
            ],
        ),
    ),
)
size = (160, 160)
img_norm_cfg = dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5], to_rgb=True)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="Resize", img_scale=size, keep_ratio=False),
    # No flip: a mirrored digit means something else. Collect's metadata needs the step itself.
    dict(type="RandomFlip", flip_ratio=0.0),
    dict(type="Normalize", **img_norm_cfg),
    dict(type="DefaultFormatBundle"),
    dict(type="Collect", keys=["img", "gt_bboxes", "gt_labels"]),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="MultiScaleFlipAug",
        img_scale=size,
        flip=False,
        transforms=[
            dict(type="Resize", keep_ratio=False),
            dict(type="Normalize", **img_norm_cfg),
            dict(type="ImageToTensor", keys=["img"]),
            dict(type="Collect", keys=["img"]),
        ],
    ),
]
data = dict(
    samples_per_gpu=4,
    train=dict(times=2, dataset=dict(pipeline=train_pipeline)),
    val=dict(pipeline=test_pipeline),
    test=dict(pipeline=test_pipeline),
)
evaluation = dict(interval=5, metric="mAP")
optimizer = dict(lr=4e-3)
runner = dict(max_epochs=5)
quant = dict(
    recipe="qat-int8",
    schedule=dict(calibration_batches=12, calibration_batch_size=16),
)
