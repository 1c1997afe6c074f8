"""Files as others write and read them: BVH, pickles, the published datasets, the pack."""
