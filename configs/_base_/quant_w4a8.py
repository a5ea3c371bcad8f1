# 4-bit weights, 8-bit activations, first and last layers 8 bits: learned ranges, distillation from
# the float model, half the float rate and a quarter of its passes.
quant = dict(
    preset="w4a8",
    learned="lsq+",
    rules=[dict(position="first", bits=8), dict(position="last", bits=8)],
    schedule=dict(
        calibration_batches=25,
        calibration_batch_size=8,
        freeze_norm_after=0.8,
        freeze_ranges_after=1.0,
    ),
    ema=dict(momentum=0.01),
    distill=dict(features=["neck.*"]),
    training={
        "optimizer.lr": 5e-4,
        "runner.max_epochs": 2,
        "lr_config.warmup_iters": 10,
    },
)
