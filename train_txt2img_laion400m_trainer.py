"""Pretrain Stable Diffusion on packed captioned images; `--help` lists the flags, train.sh holds a start."""

from sd.commands.train import main
from sd.errors import run_script

if __name__ == "__main__":
    run_script(main)
