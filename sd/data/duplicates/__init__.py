"""Duplicate pictures of a data set: fingerprints, groups, and the column that filters read."""
