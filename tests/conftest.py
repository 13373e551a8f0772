"""Every test process computes with the settings of the scripts: results are equal bit for bit only under the same."""

from sd import runtime

runtime.prepare()
