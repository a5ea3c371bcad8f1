# Blood cells (BCCD, VOC layout): SSD-FPN MobileNetV2 at 256x256 on two CPU ranks.
_base_ = [
    "../_base_/ssd_mobilenet_fpn_256.py",
    "../_base_/voc_folder_256.py",
    "../_base_/runtime.py",
]
data_root = "data/bccd"
classes = ("RBC", "WBC", "Platelets")
optimizer = dict(type="SGD", lr=2e-2, momentum=0.9, weight_decay=1e-4)
optimizer_config = dict(grad_clip=dict(max_norm=35, norm_type=2))
lr_config = dict(
    policy="CosineAnnealing", warmup="linear", warmup_iters=100, warmup_ratio=1e-3, min_lr=0
)
runner = dict(type="EpochBasedRunner", max_epochs=12)
quant = dict(
    schedule=dict(calibration_batches=25, calibration_batch_size=8),
    training={
        "optimizer.lr": 2e-3,
        "runner.max_epochs": 3,
        "lr_config.warmup_iters": 20,
        "evaluation.interval": 1,
    },
)
