"""Volumes in chunked stores and HDF5 files."""
