"""The command-line programs: parse, build, run."""
