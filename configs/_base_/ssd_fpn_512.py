# SSD heads on a feature pyramid at 512x512: the detector of TI's table (docs/guide.md).
# The backbone and the pyramid's in_channels are in the configs that inherit this one.
norm_cfg = dict(type="BN", requires_grad=True)
model = dict(
    type="SingleStageDetector",
    neck=dict(
        type="FPN",
        out_channels=256,
        add_extra_convs="on_output",
        num_outs=6,
        norm_cfg=norm_cfg,
        act_cfg=dict(type="ReLU"),
    ),
    bbox_head=dict(
        type="SSDHead",
        in_channels=(256, 256, 256, 256, 256, 256),
        num_classes=20,
        anchor_generator=dict(
            type="SSDAnchorGenerator",
            scale_major=False,
            input_size=512,
            strides=[8, 16, 32, 64, 128, 256],
            ratios=([2, 3], [2, 3], [2, 3], [2, 3], [2, 3], [2, 3]),
            min_sizes=[36, 77, 154, 230, 307, 384],
            max_sizes=[77, 154, 230, 307, 384, 461],
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
