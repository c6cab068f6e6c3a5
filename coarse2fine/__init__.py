"""Coarse-to-fine 3D segmentation with nnU-Net v2."""
