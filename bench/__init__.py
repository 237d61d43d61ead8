"""Measurements of speed and memory, each against the naive way in the same run."""
