"""How far float32 results may lie from a float64 reference, on any processor.

A sum of n products taken in float32, in any order, is off by at most n * u of the sum of their absolute values, where
u = EPS / 2 (Higham, Accuracy and Stability of Numerical Algorithms, 3.1). Processors, vector widths and threads differ
in that order alone. So a tolerance is a count: the terms of the sums that a number goes through, one after another,
each worth EPS of the largest number of the reference. Single numbers may cancel and are then off by more than EPS of
themselves; the largest number of a tensor of random results does not.
"""

import numpy as np

EPS = float(np.finfo(np.float32).eps)


def roundings(value, reference):
    """The largest error of `value`, in units of EPS times the largest absolute number of `reference` (float64)."""
    value, reference = np.asarray(value, np.float64), np.asarray(reference)
    assert reference.dtype == np.float64, f"the reference is {reference.dtype}"
    assert value.shape == reference.shape
    error, scale = np.abs(value - reference).max(), np.abs(reference).max()
    return error / (EPS * scale) if error else 0.0


def assert_close(value, reference, terms, name="the result"):
    """Fail unless `value` is within `terms` roundings of the float64 `reference`."""
    found = roundings(value, reference)
    assert found <= terms, f"{name} is {found:.3g} roundings off, of {terms} allowed"
