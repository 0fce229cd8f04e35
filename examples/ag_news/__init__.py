"""Quantization and binarization of a small transformer classifier on AG News."""
