# SSD-FPN MobileNetV2 (ImageNet weights) at 160x160. For quantized training add a recipe:
# `quant = dict(recipe="qat-int8")`: docs/guide.md.
_base_ = ["../_base_/ssd_mobilenet_fpn_256.py", "../_base_/bccd_160.py"]
model = dict(
    bbox_head=dict(
        anchor_generator=dict(
            input_size=160,
            min_sizes=[11, 24, 44, 70, 100],
            max_sizes=[24, 44, 70, 100, 140],
        )
    )
)
