"""DICOM series as volumes, and segmentations of them."""
