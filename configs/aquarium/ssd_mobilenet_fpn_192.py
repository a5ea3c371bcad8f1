# Aquarium (7 classes, many small boxes): SSD-FPN MobileNetV2 (ImageNet weights) at 192x192, eight
# epochs of three passes.
_base_ = [
    "../_base_/ssd_mobilenet_fpn_256.py",
    "../_base_/voc_folder_256.py",
    "../_base_/schedule_small.py",
    "../_base_/runtime.py",
]
data_root = "data/aquarium"
classes = ("fish", "jellyfish", "penguin", "puffin", "shark", "starfish", "stingray")
image_size = (192, 192)
model = dict(
    bbox_head=dict(
        num_classes=7,
        anchor_generator=dict(
            input_size=192,
            min_sizes=[8, 18, 40, 75, 115],
            max_sizes=[18, 40, 75, 115, 165],
        ),
    )
)
data = dict(train=dict(times=3))
evaluation = dict(interval=1, metric=["mAP", "bbox"])
