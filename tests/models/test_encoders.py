"""Captions of any length as token ids: the same ones as of the whole text, at a cost that the model's length bounds."""

import numpy as np
import pytest

from sd.models.encoders import tokenize
from sd.models.loading import load_component


class CountingTokenizer:
    """Counts the letters that it is given."""

    seen = 0

    def __call__(self, texts, **options):
        self.seen += sum(map(len, [texts] if isinstance(texts, str) else texts))
        return {"input_ids": [[7] * options["max_length"]] * (1 if isinstance(texts, str) else len(texts))}


@pytest.mark.parametrize("text", ["x" * 100_000, "word " * 20_000, " " * 100_000, "\u732b" * 100_000])
def test_of_a_hundred_thousand_letters_the_tokenizer_sees_what_the_model_may(text):
    tokenizer = CountingTokenizer()
    assert tokenize(tokenizer, text, 77).shape == (1, 77)
    assert tokenize(tokenizer, [text, "short"], 77).shape == (2, 77)
    assert tokenizer.seen <= 2 * 64 * 77 + len("short")


@pytest.mark.parametrize(
    "text", ["a red circle on a black background, " * 300, "a \t red\n" + " " * 9000 + "circle", "short"]
)
def test_the_ids_are_those_of_the_whole_text(text):
    tokenizer = load_component("tokenizer", "demo/tiny_sd", "tokenizer")
    whole = tokenizer(text, padding="max_length", truncation=True, max_length=20)["input_ids"]
    np.testing.assert_array_equal(tokenize(tokenizer, text, 20), whole)
