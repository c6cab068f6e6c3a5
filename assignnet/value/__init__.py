"""What a choice is worth, and the best one there is."""
