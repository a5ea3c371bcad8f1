# 24 epochs of ten passes each, like mmdet's ssd512_voc0712; for 2 GPUs with 16 images each.
optimizer = dict(type="SGD", lr=1e-2, momentum=0.9, weight_decay=4e-5)
optimizer_config = dict(grad_clip=dict(max_norm=35, norm_type=2))
lr_config = dict(
    policy="CosineAnnealing", warmup="linear", warmup_iters=500, warmup_ratio=1e-3, min_lr=0
)
runner = dict(type="EpochBasedRunner", max_epochs=24)
# int8: symmetric per-channel weights, affine activations; QAT: two epochs at a tenth of the rate.
quant = dict(
    weight=dict(bits=8),
    activation=dict(bits=8),
    schedule=dict(calibration_batches=64, calibration_batch_size=16),
    training={"optimizer.lr": 1e-3, "runner.max_epochs": 2, "lr_config.warmup_iters": 100},
)
