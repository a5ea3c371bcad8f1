"""The data section of a config: data sets, wrappers, classes, images."""
