# int8: a tenth of the float training's learning rate, an eighth of its passes over the data, and an
# average of the weights. The numbers follow from the detector's config: docs/qat.md.
quant = dict(
    recipe="qat-int8",
    schedule=dict(calibration_batches=25, calibration_batch_size=8),
)
