"""Cross-layer equalization (Nagel et al., 2019).

Channels rescaled between parameters before calibration.
"""
