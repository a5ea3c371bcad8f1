# AdamW and one cosine decay to zero: trains a small detector within minutes on a CPU.
optimizer = dict(type="AdamW", lr=1e-3, weight_decay=1e-2)
optimizer_config = dict(grad_clip=dict(max_norm=35, norm_type=2))
lr_config = dict(
    policy="CosineAnnealing",
    by_epoch=False,
    warmup="linear",
    warmup_iters=50,
    warmup_ratio=1e-2,
    min_lr=0,
)
runner = dict(type="EpochBasedRunner", max_epochs=8)
