"""Pretrain Stable Diffusion on packed captioned images; `--help` lists the flags, train.sh holds a start."""

from sd.entry import train

if __name__ == "__main__":
    train()
