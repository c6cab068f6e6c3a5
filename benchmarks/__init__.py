"""Measurements of coarse2fine. Commands are the modules at the top; what they share is in the folders."""
