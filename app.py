"""Serve a web page that draws pictures from a checkpoint, on this machine alone unless --host says otherwise."""

from sd.commands.serve import main
from sd.errors import run_script

if __name__ == "__main__":
    run_script(main)
