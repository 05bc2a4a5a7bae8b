"""The monitor: knows that a model is slow or wrong, on the device, without labels."""
