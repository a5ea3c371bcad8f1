"""Load batches of training images: order, worker processes, tensors on the device."""
