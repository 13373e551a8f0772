"""Draw pictures from a trained checkpoint or from published weights."""

from sd.commands.sample import main
from sd.errors import run_script

if __name__ == "__main__":
    run_script(main)
