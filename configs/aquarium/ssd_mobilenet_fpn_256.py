# Aquarium (7 classes, VOC layout, many small boxes): SSD-FPN MobileNetV2 at 256x256.
_base_ = [
    "../_base_/ssd_mobilenet_fpn_256.py",
    "../_base_/voc_folder_256.py",
    "../_base_/runtime.py",
]
data_root = "data/aquarium"
classes = ("fish", "jellyfish", "penguin", "puffin", "shark", "starfish", "stingray")
model = dict(bbox_head=dict(num_classes=7))
data = dict(train=dict(times=2))
optimizer = dict(type="SGD", lr=2e-2, momentum=0.9, weight_decay=1e-4)
optimizer_config = dict(grad_clip=dict(max_norm=35, norm_type=2))
lr_config = dict(
    policy="CosineAnnealing", warmup="linear", warmup_iters=100, warmup_ratio=1e-3, min_lr=0
)
runner = dict(type="EpochBasedRunner", max_epochs=24)
quant = dict(
    schedule=dict(calibration_batches=25, calibration_batch_size=8),
    training={
        "optimizer.lr": 2e-3,
        "runner.max_epochs": 4,
        "lr_config.warmup_iters": 20,
        "evaluation.interval": 1,
    },
)
