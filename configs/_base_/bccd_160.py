# Blood cells (BCCD, VOC layout) at 160x160: 40 passes over the images in epochs of five. Metrics:
# VOC's at IoU 0.5 and COCO's over 0.5 to 0.95.
_base_ = [
    "./voc_folder_256.py",
    "./schedule_small.py",
    "./runtime.py",
]
data_root = "data/bccd"
classes = ("RBC", "WBC", "Platelets")
image_size = (160, 160)
data = dict(train=dict(times=5))
evaluation = dict(interval=1, metric=["mAP", "bbox"])
