"""Image files: NIfTI, NRRD, MetaImage, GIPL and TIFF."""
