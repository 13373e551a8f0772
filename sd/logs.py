"""The log of the training script: one format on stderr for the whole toolkit."""

import logging
import os
import signal
import sys
import warnings


def rank() -> int:
    """This process's number among all that train, known before Paddle is imported."""
    return int(os.environ.get("PADDLE_TRAINER_ID") or 0)


def bar_seconds() -> float:
    """Seconds between two updates of a progress bar: in a log file, where each is a line, one in half a minute is
    enough."""
    return 0.5 if sys.stderr.isatty() else 30


class _BesideProgressBar(logging.StreamHandler):
    """Writes through tqdm, which moves an open progress bar out of the way."""

    def emit(self, record):
        from tqdm import tqdm

        tqdm.write(self.format(record), file=self.stream)
        self.flush()


def set_up_logging() -> None:
    """Log everything on rank 0 and warnings elsewhere, with time and, beside rank 0, the rank."""
    handler = _BesideProgressBar(sys.stderr)
    rank_prefix = "" if rank() == 0 else f"[rank {rank()}] "
    handler.setFormatter(logging.Formatter(f"%(asctime)s {rank_prefix}%(message)s", "%H:%M:%S"))
    log = logging.getLogger("sd")
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO if rank() == 0 else logging.WARNING)


def _put_back_sigterm() -> None:
    """Python's handler of SIGTERM, in whose place Paddle's import puts one that prints a stack, paddlenlp's none."""
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


def import_quietly() -> None:
    """Import the libraries without their warnings about each other, and let paddlenlp log only what is wrong."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import paddle  # noqa: F401

        _put_back_sigterm()
        import paddlenlp.trainer  # noqa: F401

        _put_back_sigterm()
        import ppdiffusers  # noqa: F401
        from paddlenlp.utils.log import logger
    logger.set_level("WARNING")


def prepare_worker() -> None:
    """In a worker that computes by Paddle: it logs warnings alone, and the libraries' about each other not at all."""
    set_up_logging()
    logging.getLogger("sd").setLevel(logging.WARNING)
    import_quietly()
