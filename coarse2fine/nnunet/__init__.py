"""Trained nnU-Net v2 models: reading their files, and running their networks."""
