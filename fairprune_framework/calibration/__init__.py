"""Calibration text: built in, from a file, or sampled."""
