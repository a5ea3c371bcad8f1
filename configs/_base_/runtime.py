# Like mmdet's default_runtime.py, but logs every 20 steps and keeps three checkpoints.
checkpoint_config = dict(interval=1, max_keep_ckpts=3)
log_config = dict(interval=20, hooks=[dict(type="TextLoggerHook")])
log_level = "INFO"
load_from = None
resume_from = None
workflow = [("train", 1)]
# False: float training. True or 'training': QAT. 'calibration': PTQ.
quantize = False
