"""The flags of training: dataclasses that check themselves, and the command line that fills them."""
