"""Benchmarks, run as `python -m bench NAME`; their figures are in docs/benchmarks.md and bench/results/."""
