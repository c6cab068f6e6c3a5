"""A result as a page: one file that works offline and loads nothing."""
