"""Ways of segmenting a case, measured in turns."""
