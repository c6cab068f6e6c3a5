"""What a choice of regions is: the tree, what processing costs, and rules that choose."""
