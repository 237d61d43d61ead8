"""rpam_lite: merge a Long-CoT and a Short-CoT model into one adaptive reasoner, without training."""

__version__ = "0.1.0"
