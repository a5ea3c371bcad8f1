# mmdet's own SSD512 with VGG16 on VOC0712 (79.8 float), plus a quantization section.
import os.path

import mmdet

_base_ = os.path.join(os.path.dirname(mmdet.__file__), ".mim/configs/pascal_voc/ssd512_voc0712.py")
quantize = False
quant = dict(
    schedule=dict(calibration_batches=64, calibration_batch_size=8),
    training={
        "optimizer.lr": 1e-4,
        "runner.max_epochs": 2,
        "lr_config.warmup_iters": 100,
        "lr_config.step": [1],
    },
)
