"""Scores of drawn pictures: FID and CLIP score."""
