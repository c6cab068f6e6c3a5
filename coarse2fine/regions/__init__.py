"""From the heatmap to regions, and the tree of regions."""
