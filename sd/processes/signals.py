"""Ctrl-C and SIGTERM as a wish that the training loop grants at the end of its step."""

import signal


class StopSignals:
    """Within the context SIGINT and SIGTERM only set `received`; a second SIGINT interrupts at once.

    A second SIGTERM does not: Paddle's launcher sends three of them, 0.2 s apart.
    """

    def __init__(self):
        self.received = None
        self._before = {}

    def __enter__(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, number, _frame):
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or signal.Signals(number)
