"""What ``launcher show`` draws: labelled images, what a pipeline makes of them, boxes, anchors."""
