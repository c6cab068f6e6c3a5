"""Volumes as a network wants them."""
