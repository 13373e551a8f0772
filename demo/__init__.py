"""The demonstration: captioned shapes, tiny frozen models that fit them, and a classifier that reads the result."""
