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
    actual = roundings(value, reference)
    assert actual <= terms, f"{name} is {actual:.3g} roundings off, of {terms} allowed"


def assert_close_in_float16(value, reference, terms, name="the result"):
    """Fail unless `value`, float16, is a float32 number within `terms` roundings of the float64 reference, rounded."""
    assert value.dtype == np.float16, f"{name} is {value.dtype}"
    assert reference.dtype == np.float64 and value.shape == reference.shape
    allowed = float16_rounding(reference) + (1 + 2.0**-11) * terms * EPS * np.abs(reference).max()
    over = (np.abs(value.astype(np.float64) - reference) / allowed).max()
    assert over <= 1, f"{name} is off by {over:.3g} times what float16 and {terms:.0f} roundings allow"


def float16_rounding(reference):
    """How far each number moves when it is rounded to float16: half a unit of its 11 bits, or of 2^-24 near zero."""
    return 2.0**-11 * np.abs(reference) + 2.0**-25


def assert_picture(levels, reference, terms, name="the picture"):
    """Fail unless uint8 `levels` are numbers within `terms` roundings of the float64 reference, rounded and clipped.

    The reference is made of numbers in [-1, 1] or so, 127.5 levels each.
    """
    expected = reference.clip(0, 255)
    allowed = 0.5 + terms * EPS * (np.abs(reference - 127.5).max() + 127.5)
    error = np.abs(levels.astype(np.float64) - expected).max()
    assert error <= allowed, f"{name} is {error:.3g} levels off, of {allowed:.3g} allowed"


def share_of_way(end, reference, start):
    """Euclidean distance of two ends of a training, relative to that from its start to the end `reference`."""
    end, reference, start = (np.asarray(vector, np.float64) for vector in (end, reference, start))
    return np.linalg.norm(end - reference) / np.linalg.norm(reference - start)


def most_of_way(terms):
    """How large `share_of_way` may be by rounding alone where Adam moves the weights.

    Adam divides a gradient by its own size, so a number moves by about the learning rate whatever its gradient is. One
    within d = terms * EPS of the largest may move either way, twice the step off; a larger one g is off by d / g of its
    step. With gradients spread evenly around zero the mean of min(2, d / g)^2 is 4 * d / 2 + 2 * d, and half as
    many again for the steps that follow from weights that are off.
    """
    return float(np.sqrt(1.5 * 4 * terms * EPS))


def assert_same_training(end, reference, start, terms=4000, name="the end"):
    """Fail unless two trainings by Adam agree to rounding. terms: of the sums that a gradient of the tiny UNet goes
    through, 40 convolutions and products of about 100."""
    actual, most = share_of_way(end, reference, start), most_of_way(terms)
    assert actual <= most, f"{name} is {actual:.3g} of the way off, of {most:.3g} allowed"
