"""Filters on the columns of a data set: an expression as text, as a tree, and evaluated over the rows of a part."""
