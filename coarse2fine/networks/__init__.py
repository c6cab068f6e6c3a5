"""Networks beside nnU-Net's, and what is the same for all: their features."""
