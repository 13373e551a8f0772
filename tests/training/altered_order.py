"""train_txt2img_laion400m_trainer.py with a changed order, which ALTERED_ORDER names in JSON, in every rank and worker.

{"poisoned": [s, ...]}: the noise of these samples is NaN, and with it the loss of their micro-batch;
{"without": [first, stop]}: an order that never had these samples, by a list that knows nothing of skipped ones.
"""

import itertools
import json
import os

from sd import entry
from sd.data.streaming import order, stream  # neither imports Paddle, which must come after sd.runtime

_LONGEST = 150  # samples that a worker takes at most


def _poison(samples):
    own = stream.SampleSource.train

    def train(self, sample):
        arrays = own(self, sample)
        return arrays | {"noise": arrays["noise"] * float("nan")} if sample in samples else arrays

    stream.SampleSource.train = train


def _leave_out(first, stop):
    own = order.worker_samples
    numbers = [number for number in range(2 * _LONGEST) if not first <= number < stop]
    order.worker_samples = lambda *given: (numbers[s] for s in itertools.islice(own(*given), _LONGEST))


if __name__ == "__main__":
    altered = json.loads(os.environ["ALTERED_ORDER"])
    if "poisoned" in altered:
        _poison(altered["poisoned"])
    if "without" in altered:
        _leave_out(*altered["without"])
    entry.train()
