"""The fine stage: boxes -> canvases -> network -> labels."""
