# Aquarium (7 classes, VOC layout, many small boxes): SSD-FPN MobileNetV2 (ImageNet weights) at
# 256x256, eight epochs of five passes. The anchors are those that `launcher init --size 256` fits.
_base_ = [
    "../_base_/ssd_mobilenet_fpn_256.py",
    "../_base_/voc_folder_256.py",
    "../_base_/schedule_small.py",
    "../_base_/runtime.py",
]
data_root = "data/aquarium"
classes = ("fish", "jellyfish", "penguin", "puffin", "shark", "starfish", "stingray")
model = dict(
    bbox_head=dict(
        num_classes=7,
        anchor_generator=dict(
            _delete_=True,
            type="YOLOAnchorGenerator",
            strides=[8, 16, 32, 64, 128],
            base_sizes=[
                [(14, 20), (24, 12), (23, 28), (40, 16)],
                [(49, 28), (30, 57), (74, 26), (57, 46)],
                [(111, 52), (70, 92), (170, 81), (202, 140)],
                [(221, 105), (140, 183), (256, 162), (256, 256)],
                [(256, 210), (256, 256), (256, 256), (256, 256)],
            ],
        ),
    )
)
data = dict(train=dict(times=5))
evaluation = dict(interval=1, metric=["mAP", "bbox"])
