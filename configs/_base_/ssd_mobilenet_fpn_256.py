# SSD heads on a narrow pyramid over MobileNetV2 at 256x256: trains on a CPU.
_base_ = ["./mobilenet_fpn.py"]
model = dict(
    type="SingleStageDetector",
    neck=dict(add_extra_convs="on_output", num_outs=5),
    bbox_head=dict(
        type="SSDHead",
        in_channels=(64, 64, 64, 64, 64),
        num_classes=3,
        anchor_generator=dict(
            type="SSDAnchorGenerator",
            scale_major=False,
            input_size=256,
            strides=[8, 16, 32, 64, 128],
            ratios=([2], [2], [2], [2], [2]),
            min_sizes=[14, 28, 56, 100, 150],
            max_sizes=[28, 56, 100, 150, 220],
        ),
        bbox_coder=dict(
            type="DeltaXYWHBBoxCoder",
            target_means=[0.0, 0.0, 0.0, 0.0],
            target_stds=[0.1, 0.1, 0.2, 0.2],
        ),
    ),
    train_cfg=dict(
        assigner=dict(
            type="MaxIoUAssigner",
            pos_iou_thr=0.5,
            neg_iou_thr=0.5,
            min_pos_iou=0.0,
            ignore_iof_thr=-1,
            gt_max_assign_all=False,
        ),
        smoothl1_beta=1.0,
        allowed_border=-1,
        pos_weight=-1,
        neg_pos_ratio=3,
        debug=False,
    ),
    test_cfg=dict(
        nms_pre=1000,
        nms=dict(type="nms", iou_threshold=0.45),
        min_bbox_size=0,
        score_thr=0.02,
        max_per_img=200,
    ),
)
