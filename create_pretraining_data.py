"""Pack captioned images into parts for training: JSONL, webdataset or parquet in, parts and file lists out."""

from sd.commands.pack import main
from sd.errors import run_script

if __name__ == "__main__":
    run_script(main)
