"""nnU-Net's resampling."""
