"""The two ways in which a script ends badly, each with one line for the person at the terminal."""

import sys


class InputError(ValueError):
    """Wrong arguments or input. The message names the value, the place and the remedy; exit code 2."""


class RunError(RuntimeError):
    """A failure on the way. The message names what failed and what to do; exit code 1."""


def run_script(main):
    """Call `main()` and leave the process: exit code 0, 2 after an `InputError`, 1 after a `RunError`."""
    try:
        main()
    except InputError as error:
        sys.exit(_report(error, 2))
    except RunError as error:
        sys.exit(_report(error, 1))


def _report(error, code):
    print(f"error: {error}", file=sys.stderr, flush=True)
    return code
