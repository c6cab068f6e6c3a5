"""Published data sets as nnU-Net v2 raw data: one module per published layout, and ``rawdata`` that checks and writes.

Modules of layouts only find out which images and labels there are; nothing of a volume is read before ``rawdata`` does.
"""
