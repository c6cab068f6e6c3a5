"""What the repository ships that is made by commands."""
