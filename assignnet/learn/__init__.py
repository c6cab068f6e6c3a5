"""Agents that learn to choose."""
