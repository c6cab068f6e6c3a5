"""Measurements of rules and agents."""
