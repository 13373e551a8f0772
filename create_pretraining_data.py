"""Pack captioned images into parts for training: folders, tables, JSONL, shards in, parts and file lists out."""

from sd.entry import pack

if __name__ == "__main__":
    pack()
