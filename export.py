"""Write a checkpoint as a whole pipeline folder, for ppdiffusers or for diffusers on PyTorch."""

from sd.commands.export import main
from sd.errors import run_script

if __name__ == "__main__":
    run_script(main)
