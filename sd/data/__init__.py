"""The way of the data: images, parts, packing, streaming."""
