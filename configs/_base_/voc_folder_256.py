# Your own data set in VOC's layout. Inherit this file, set `data_root` and `classes`, and also
# `image_size` for a size other than 256x256.
dataset_type = "VOCFolderDataset"
data_root = "data/SET_ME"
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
        times=4,
        dataset=dict(
            type=dataset_type,
            classes="${classes}",
            ann_file="${data_root}/ImageSets/Main/train.txt",
            img_prefix="${data_root}/",
            pipeline=train_pipeline,
        ),
    ),
    val=dict(
        type=dataset_type,
        classes="${classes}",
        ann_file="${data_root}/ImageSets/Main/val.txt",
        img_prefix="${data_root}/",
        pipeline=test_pipeline,
    ),
    test=dict(
        type=dataset_type,
        classes="${classes}",
        ann_file="${data_root}/ImageSets/Main/test.txt",
        img_prefix="${data_root}/",
        pipeline=test_pipeline,
    ),
)
evaluation = dict(interval=2, metric="mAP")
