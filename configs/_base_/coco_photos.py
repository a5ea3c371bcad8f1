# Photographs with boxes in COCO's format, as `launcher init` writes them. It fills in `data_root`,
# `annotations`, `classes`, `image_size` and the number of passes.
data_root = "data/SET_ME"
annotations = "data/SET_ME"
classes = ("thing",)
image_size = (256, 256)
img_norm_cfg = dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5], to_rgb=True)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="MinIoURandomCrop", min_ious=(0.3, 0.5, 0.7, 0.9), min_crop_size=0.5),
    dict(type="Resize", img_scale="${image_size}", keep_ratio=False),
    dict(type="RandomFlip", flip_ratio=0.5),
    dict(
        type="PhotoMetricDistortion",
        brightness_delta=24,
        contrast_range=(0.7, 1.3),
        saturation_range=(0.7, 1.3),
        hue_delta=10,
    ),
    dict(type="Normalize", **img_norm_cfg),
    dict(type="DefaultFormatBundle"),
    dict(type="Collect", keys=["img", "gt_bboxes", "gt_labels"]),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="MultiScaleFlipAug",
        img_scale="${image_size}",
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
    samples_per_gpu=8,
    workers_per_gpu=1,
    train=dict(
        type="RepeatDataset",
        times=1,
        dataset=dict(
            type="CocoDataset",
            classes="${classes}",
            ann_file="${annotations}/train.json",
            img_prefix="${data_root}/",
            filter_empty_gt=False,
            pipeline=train_pipeline,
        ),
    ),
    val=dict(
        type="CocoDataset",
        classes="${classes}",
        ann_file="${annotations}/val.json",
        img_prefix="${data_root}/",
        pipeline=test_pipeline,
    ),
    test=dict(
        type="CocoDataset",
        classes="${classes}",
        ann_file="${annotations}/test.json",
        img_prefix="${data_root}/",
        pipeline=test_pipeline,
    ),
)
evaluation = dict(interval=2, metric="bbox")
