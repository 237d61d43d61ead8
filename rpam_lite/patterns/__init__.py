"""Pattern-labelled calibration set: which questions deserve long reasoning."""
