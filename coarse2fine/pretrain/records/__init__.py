"""Reports that belong to images: their words as numbers, networks that read and write them."""
