"""A coarse model for a fine one: planned from a few cases, and trained by nnU-Net's own trainer within minutes."""
