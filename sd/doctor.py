"""The doctor of training as a module of its own: `python -m sd.doctor` with the flags of the training command."""

from sd.entry import doctor

if __name__ == "__main__":
    doctor()
