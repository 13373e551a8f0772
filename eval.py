"""Draw pictures from a trained checkpoint or from published weights."""

from sd.entry import sample

if __name__ == "__main__":
    sample()
