# SSD-FPN with a ResNet18 of half width, from scratch, at 160x160.
_base_ = ["./ssd_mobilenet_fpn_160.py"]
model = dict(
    backbone=dict(
        _delete_=True,
        type="ResNet",
        depth=18,
        base_channels=32,
        stem_channels=32,
        out_indices=(1, 2, 3),
        frozen_stages=-1,
        norm_cfg=dict(type="BN", requires_grad=True),
        norm_eval=False,
        init_cfg=None,
    ),
    neck=dict(in_channels=[64, 128, 256]),
)
# From scratch: 50 passes.
runner = dict(max_epochs=10)
