"""Measurements of volumes in stores."""
