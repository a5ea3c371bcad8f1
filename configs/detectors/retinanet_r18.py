# RetinaNet with shallow towers over ResNet18, for `launcher init`, which fits the anchors.
_base_ = ["./retinanet_mobilenet.py"]
model = dict(
    backbone=dict(
        _delete_=True,
        type="ResNet",
        depth=18,
        out_indices=(1, 2, 3),
        frozen_stages=-1,
        norm_cfg=dict(type="BN", requires_grad=True),
        norm_eval=False,
    ),
    neck=dict(in_channels=[128, 256, 512]),
)
