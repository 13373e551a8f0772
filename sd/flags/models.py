"""Flags that several of the drawing scripts take."""

from collections.abc import Callable
from typing import Any


def add_model_flags(add: Callable[..., Any]) -> None:
    """Add what names the parts beside the UNet, by the parser's `add_argument`."""
    add(
        "--pretrained_model",
        metavar="NAME",
        help="folder or published name of what is not named below (default: what the checkpoint's run used)",
    )
    add("--text_encoder", metavar="NAME", help="the text encoder alone (default: the checkpoint's, if it was trained)")
    add("--vae", metavar="NAME", help="the VAE alone")
    add("--tokenizer", metavar="NAME", help="the tokenizer alone")
