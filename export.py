"""Write a checkpoint as a whole pipeline folder, for ppdiffusers or for diffusers on PyTorch."""

from sd.entry import export

if __name__ == "__main__":
    export()
