# int8: an eighth of the float passes at a tenth of the float rate, with a weight average.
quant = dict(
    preset="int8",
    schedule=dict(calibration_batches=25, calibration_batch_size=8),
    ema=dict(momentum=0.01),
    training={
        "optimizer.lr": 1e-4,
        "runner.max_epochs": 1,
        "lr_config.warmup_iters": 10,
    },
)
