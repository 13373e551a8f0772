"""The file format: records, parts, their index, file lists, storage."""
