"""Volumes larger than memory: cut into blocks, worked off in phases, here or on a cluster, and resumed after a kill."""
