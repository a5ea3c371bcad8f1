# SSD heads on a narrow pyramid over MobileNetV2, for `launcher init`, which fits the anchors.
_base_ = [
    "../_base_/ssd_mobilenet_fpn_256.py",
    "../_base_/coco_photos.py",
    "../_base_/schedule_small.py",
    "../_base_/quant_int8.py",
    "../_base_/runtime.py",
]
model = dict(
    bbox_head=dict(
        num_classes=1,
        anchor_generator=dict(
            _delete_=True,
            type="YOLOAnchorGenerator",
            strides=[8, 16, 32, 64, 128],
            base_sizes=[
                [(s, s), (s, 2 * s), (2 * s, s), (2 * s, 2 * s)] for s in (8, 16, 32, 64, 112)
            ],
        ),
    ),
)
