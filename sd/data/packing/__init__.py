"""Packing: captioned images in, parts and file lists out."""
