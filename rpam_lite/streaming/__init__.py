"""Hidden states of the parents on the calibration set: capture, store, read."""
