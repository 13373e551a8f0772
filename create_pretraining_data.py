"""Pack captioned images into parts for training: JSONL, webdataset or parquet in, parts and file lists out."""

from sd.errors import run_script


def main() -> None:
    """Import within `run_script`, so that Ctrl-C gives one line from the first moment on."""
    from sd.commands.pack import main

    main()


if __name__ == "__main__":
    run_script(main)
