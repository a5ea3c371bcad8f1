# SSD-FPN 512 with RegNetX-800MF on VOC0712. TI's table: 79.7 float, 79.0 calibrated, 79.5 QAT.
_base_ = [
    "../_base_/ssd_fpn_512.py",
    "../_base_/voc0712_512.py",
    "../_base_/schedule_voc.py",
    "../_base_/runtime.py",
]
model = dict(
    backbone=dict(
        type="RegNet",
        arch="regnetx_800mf",
        out_indices=(1, 2, 3),
        frozen_stages=-1,
        norm_cfg=dict(type="BN", requires_grad=True),
        norm_eval=False,
        style="pytorch",
        init_cfg=dict(type="Pretrained", checkpoint="open-mmlab://regnetx_800mf"),
    ),
    neck=dict(in_channels=[128, 288, 672]),
)
