# YOLOX-Nano at 416x416 on COCO's classes, everything at 8 bits with the default settings.
# Calibrates on data.train with the test pipeline. A checkpoint with folded batch norms works too:
# its norms are identities.
_base_ = ["../_base_/runtime.py"]
data_root = "data/coco/"
model = dict(
    type="YOLOX",
    input_size=(416, 416),
    random_size_range=(10, 20),
    random_size_interval=10,
    backbone=dict(type="CSPDarknet", deepen_factor=0.33, widen_factor=0.25, use_depthwise=True),
    neck=dict(
        type="YOLOXPAFPN",
        in_channels=[64, 128, 256],
        out_channels=64,
        num_csp_blocks=1,
        use_depthwise=True,
    ),
    bbox_head=dict(
        type="YOLOXHead", num_classes=80, in_channels=64, feat_channels=64, use_depthwise=True
    ),
    train_cfg=dict(assigner=dict(type="SimOTAAssigner", center_radius=2.5)),
    test_cfg=dict(score_thr=0.001, nms=dict(type="nms", iou_threshold=0.65)),
)
pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="MultiScaleFlipAug",
        img_scale=(416, 416),
        flip=False,
        transforms=[
            dict(type="Resize", keep_ratio=True),
            dict(type="RandomFlip"),
            dict(type="Pad", pad_to_square=True, pad_val=dict(img=(114.0, 114.0, 114.0))),
            dict(type="DefaultFormatBundle"),
            dict(type="Collect", keys=["img"]),
        ],
    ),
]
data = dict(
    samples_per_gpu=8,
    workers_per_gpu=1,
    train=dict(
        type="CocoDataset",
        ann_file=data_root + "annotations/instances_train2017.json",
        img_prefix=data_root + "train2017/",
        pipeline=pipeline,
    ),
    val=dict(
        type="CocoDataset",
        ann_file=data_root + "annotations/instances_val2017.json",
        img_prefix=data_root + "val2017/",
        pipeline=pipeline,
    ),
    test=dict(
        type="CocoDataset",
        ann_file=data_root + "annotations/instances_val2017.json",
        img_prefix=data_root + "val2017/",
        pipeline=pipeline,
    ),
)
evaluation = dict(interval=1, metric="bbox")
# YOLOX's own training, for the rules of `quant.recipe`.
optimizer = dict(type="SGD", lr=0.01, momentum=0.9, weight_decay=5e-4, nesterov=True)
lr_config = dict(
    policy="YOLOX",
    warmup="exp",
    by_epoch=False,
    warmup_by_epoch=True,
    warmup_ratio=1,
    warmup_iters=5,
    num_last_epochs=15,
    min_lr_ratio=0.05,
)
runner = dict(type="EpochBasedRunner", max_epochs=300)
auto_scale_lr = dict(enable=False, base_batch_size=64)
quant = dict(
    recipe="qat-int8",
    schedule=dict(calibration_batches=8, calibration_batch_size=8),
)
