"""From labelled photographs to a data set: checks, splits, statistics, anchors, COCO files."""
