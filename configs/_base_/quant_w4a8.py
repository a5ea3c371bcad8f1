# 4-bit weights, 8-bit activations, first and last layers 8 bits: learned ranges, distillation from
# the float model, a fifth of the float training's learning rate and a quarter of its passes.
quant = dict(
    recipe="qat-w4a8",
    schedule=dict(calibration_batches=25, calibration_batch_size=8),
)
