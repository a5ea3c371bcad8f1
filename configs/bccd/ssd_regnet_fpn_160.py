# SSD-FPN with RegNetX-200MF (a quarter of RegNetX-800MF's multiply-adds), from scratch.
_base_ = ["./ssd_mobilenet_fpn_160.py"]
model = dict(
    backbone=dict(
        _delete_=True,
        type="RegNet",
        arch=dict(w0=24, wa=36.44, wm=2.49, group_w=8, depth=13, bot_mul=1.0),
        out_indices=(1, 2, 3),
        frozen_stages=-1,
        norm_cfg=dict(type="BN", requires_grad=True),
        norm_eval=False,
        style="pytorch",
        init_cfg=None,
    ),
    neck=dict(in_channels=[56, 152, 368]),
)
# From scratch: 50 passes.
runner = dict(max_epochs=10)
