"""The doctor of training as a module of its own: `python -m sd.doctor` with the flags of the training command."""

from sd.errors import run_script
from sd.training.doctor import main

if __name__ == "__main__":
    run_script(main, "nothing was changed; the same command starts again")
