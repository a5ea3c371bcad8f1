# FCOS with shallow narrow towers over MobileNetV2, without anchors, for `launcher init`.
_base_ = [
    "../_base_/dense_mobilenet_fpn.py",
    "../_base_/coco_photos.py",
    "../_base_/schedule_small.py",
    "../_base_/quant_int8.py",
    "../_base_/runtime.py",
]
model = dict(
    type="FCOS",
    neck=dict(add_extra_convs="on_output", num_outs=5),
    bbox_head=dict(
        type="FCOSHead",
        num_classes=1,
        in_channels=64,
        stacked_convs=2,
        feat_channels=64,
        strides=[8, 16, 32, 64, 128],
        regress_ranges=((-1, 32), (32, 64), (64, 128), (128, 256), (256, 1e8)),
        center_sampling=True,
        center_sample_radius=1.5,
        norm_on_bbox=True,
        centerness_on_reg=True,
        # mmdet's own choice: the towers are shared by all levels, whose statistics differ.
        norm_cfg=dict(type="GN", num_groups=16, requires_grad=True),
        loss_cls=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type="GIoULoss", loss_weight=1.0),
        loss_centerness=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0),
    ),
)
