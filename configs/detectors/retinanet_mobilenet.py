# RetinaNet with shallow towers over MobileNetV2, for `launcher init`, which fits the anchors.
_base_ = [
    "../_base_/dense_mobilenet_fpn.py",
    "../_base_/coco_photos.py",
    "../_base_/schedule_small.py",
    "../_base_/quant_int8.py",
    "../_base_/runtime.py",
]
model = dict(
    type="RetinaNet",
    neck=dict(add_extra_convs="on_output", num_outs=5),
    bbox_head=dict(
        type="RetinaHead",
        num_classes=1,
        in_channels=64,
        stacked_convs=2,
        feat_channels=64,
        anchor_generator=dict(
            type="YOLOAnchorGenerator",
            strides=[8, 16, 32, 64, 128],
            base_sizes=[
                [(s, s), (s, 2 * s), (2 * s, s), (2 * s, 2 * s)] for s in (8, 16, 32, 64, 128)
            ],
        ),
        bbox_coder=dict(
            type="DeltaXYWHBBoxCoder",
            target_means=[0.0, 0.0, 0.0, 0.0],
            target_stds=[1.0, 1.0, 1.0, 1.0],
        ),
        loss_cls=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type="L1Loss", loss_weight=1.0),
    ),
)
