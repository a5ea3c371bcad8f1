# MobileNetV2 with a narrow pyramid of three levels, strides 8 to 32.
norm_cfg = dict(type="BN", requires_grad=True)
# Set the prefix to None for a file that has only the backbone's weights.
backbone_weights = "open-mmlab://mmdet/mobilenet_v2"
backbone_prefix = "backbone"
model = dict(
    backbone=dict(
        type="MobileNetV2",
        out_indices=(2, 4, 6),
        norm_cfg=norm_cfg,
        act_cfg=dict(type="ReLU6"),
        init_cfg=dict(
            type="Pretrained", checkpoint="${backbone_weights}", prefix="${backbone_prefix}"
        ),
    ),
    neck=dict(
        type="FPN",
        in_channels=[32, 96, 320],
        out_channels=64,
        num_outs=3,
        norm_cfg=norm_cfg,
        act_cfg=dict(type="ReLU"),
    ),
)
