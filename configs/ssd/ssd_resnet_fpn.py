# SSD-FPN 512 with ResNet50 on VOC0712. TI's table: 80.5 float, 77.0 calibrated, 79.5 QAT.
_base_ = [
    "../_base_/ssd_fpn_512.py",
    "../_base_/voc0712_512.py",
    "../_base_/schedule_voc.py",
    "../_base_/runtime.py",
]
model = dict(
    backbone=dict(
        type="ResNet",
        depth=50,
        num_stages=4,
        out_indices=(1, 2, 3),
        frozen_stages=-1,
        norm_cfg=dict(type="BN", requires_grad=True),
        norm_eval=False,
        style="pytorch",
        init_cfg=dict(type="Pretrained", checkpoint="torchvision://resnet50"),
    ),
    neck=dict(in_channels=[512, 1024, 2048]),
)
