"""Check a data set before training: images, boxes, classes."""
