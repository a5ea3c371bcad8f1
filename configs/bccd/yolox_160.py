# YOLOX with a quarter of its width, from scratch, at 160x160 and no other size.
_base_ = ["../_base_/bccd_160.py"]
model = dict(
    type="YOLOX",
    input_size=(160, 160),
    random_size_range=(5, 5),
    random_size_interval=10,
    backbone=dict(type="CSPDarknet", deepen_factor=0.33, widen_factor=0.25),
    neck=dict(type="YOLOXPAFPN", in_channels=[64, 128, 256], out_channels=64, num_csp_blocks=1),
    bbox_head=dict(type="YOLOXHead", num_classes=3, in_channels=64, feat_channels=64),
    train_cfg=dict(assigner=dict(type="SimOTAAssigner", center_radius=2.5)),
    test_cfg=dict(score_thr=0.01, nms=dict(type="nms", iou_threshold=0.65)),
)
# From scratch: 60 passes.
runner = dict(max_epochs=12)
