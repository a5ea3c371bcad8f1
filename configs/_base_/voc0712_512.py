# Pascal VOC 2007 + 2012 trainval for training, VOC 2007 test for evaluation, at 512x512.
# `python -m launcher data voc0712` puts them into data/VOCdevkit.
dataset_type = "VOCDataset"
data_root = "data/VOCdevkit"
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(
        type="Expand", mean=img_norm_cfg["mean"], to_rgb=img_norm_cfg["to_rgb"], ratio_range=(1, 4)
    ),
    dict(type="MinIoURandomCrop", min_ious=(0.1, 0.3, 0.5, 0.7, 0.9), min_crop_size=0.3),
    dict(type="Resize", img_scale=(512, 512), keep_ratio=False),
    dict(type="RandomFlip", flip_ratio=0.5),
    dict(
        type="PhotoMetricDistortion",
        brightness_delta=32,
        contrast_range=(0.5, 1.5),
        saturation_range=(0.5, 1.5),
        hue_delta=18,
    ),
    dict(type="Normalize", **img_norm_cfg),
    dict(type="DefaultFormatBundle"),
    dict(type="Collect", keys=["img", "gt_bboxes", "gt_labels"]),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="MultiScaleFlipAug",
        img_scale=(512, 512),
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
    samples_per_gpu=16,
    workers_per_gpu=4,
    train=dict(
        type="RepeatDataset",
        times=10,
        dataset=dict(
            type=dataset_type,
            ann_file=[
                "${data_root}/VOC2007/ImageSets/Main/trainval.txt",
                "${data_root}/VOC2012/ImageSets/Main/trainval.txt",
            ],
            img_prefix=["${data_root}/VOC2007/", "${data_root}/VOC2012/"],
            pipeline=train_pipeline,
        ),
    ),
    val=dict(
        type=dataset_type,
        ann_file="${data_root}/VOC2007/ImageSets/Main/test.txt",
        img_prefix="${data_root}/VOC2007/",
        pipeline=test_pipeline,
    ),
    test=dict(
        type=dataset_type,
        ann_file="${data_root}/VOC2007/ImageSets/Main/test.txt",
        img_prefix="${data_root}/VOC2007/",
        pipeline=test_pipeline,
    ),
)
evaluation = dict(interval=1, metric="mAP")
