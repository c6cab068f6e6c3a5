"""Learning from few labels: a pretrained network or a random one, a head, a loop, and measures on what was held out."""
