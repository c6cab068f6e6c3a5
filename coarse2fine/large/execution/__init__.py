"""Working off the blocks of a run, here or on a cluster, and remembering what is done."""
