"""Learning from images without labels: one loop, objectives that are added up, weights that nnU-Net begins with."""
