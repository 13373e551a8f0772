"""A CLIP tokenizer that knows every byte, and every word of the captions as one token."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

from demo.shapes import ALL_LABELS, caption_of

START, END = "<|startoftext|>", "<|endoftext|>"
# A caption has nine tokens with the two marks. The encoder knows 77 places, but short rows train faster.
MAX_LENGTH = 16


def learn_merges(words):
    """Byte-pair merges, most frequent pair first, until each of `words` (ASCII) is a single symbol."""
    spelled = [[*word[:-1], word[-1] + "</w>"] for word in sorted(words)]
    merges = []
    while any(len(symbols) > 1 for symbols in spelled):
        pairs = Counter(pair for symbols in spelled for pair in pairwise(symbols))
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spelled = [_merge(symbols, best) for symbols in spelled]
    return merges


def _merge(symbols, pair):
    merged, i = [], 0
    while i < len(symbols):
        if tuple(symbols[i : i + 2]) == pair:
            merged.append(symbols[i] + symbols[i + 1])
            i += 2
        else:
            merged.append(symbols[i])
            i += 1
    return merged


def write_tokenizer(folder, merges, max_length):
    """Write the files of a CLIP tokenizer of all bytes and of `merges`, pairs of symbols in the order in which they
    are joined, to `folder`. Returns it, loaded from there."""
    from paddlenlp.transformers import CLIPTokenizer
    from paddlenlp.transformers.clip.tokenizer import bytes_to_unicode

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    alphabet = list(bytes_to_unicode().values())
    tokens = [*alphabet, *(c + "</w>" for c in alphabet), *(a + b for a, b in merges), START, END]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": max_length, "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return CLIPTokenizer.from_pretrained(str(folder))


def make_tokenizer(folder):
    """The tokenizer of the demo's captions, written to `folder`."""
    merges = learn_merges({word for labels in ALL_LABELS for word in caption_of(*labels).split()})
    return write_tokenizer(folder, merges, MAX_LENGTH)
