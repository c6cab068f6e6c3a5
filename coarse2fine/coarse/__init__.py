"""The coarse stage: one pass over the whole volume."""
