"""Tokenizer and text encoder of the captions."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddlenlp.transformers import CLIPTokenizer
from paddlenlp.transformers.clip.tokenizer import bytes_to_unicode
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from demo.descent import minimise
from demo.make_text_encoder import build_text_encoder
from demo.make_tokenizer import write_tokenizer

MAX_LENGTH = 16
VOCABULARY = 2723  # every byte, within a word and at its end, and 2,211 merges
HIDDEN, LAYERS, HEADS = 256, 3, 8
# Share of the words that a caption loses in a step, so that what is left means what all captions with it show.
WORD_DROPOUT = 0.15


def make_tokenizer(captions: list[str], folder: Path) -> CLIPTokenizer:
    """A byte-pair vocabulary of the captions in the files of CLIP's tokenizer, learned by the package `tokenizers`."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits(True)])
    alphabet = list(bytes_to_unicode().values())
    # Pairs that are equally frequent are merged in the order of their symbols' numbers, which the package gives to
    # letters at the end of a word in the order of a hash table, another in each process, unless they are special.
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=alphabet,
        special_tokens=[letter + "</w>" for letter in alphabet],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator(captions, trainer)
    pairs = json.loads(bpe.to_str())["model"]["merges"]  # "a b", or from version 0.20 on ["a", "b"]
    return write_tokenizer(folder, [pair.split() if isinstance(pair, str) else pair for pair in pairs], MAX_LENGTH)


def train_text_encoder(
    tokenizer: CLIPTokenizer, captions: list[str], latents: np.ndarray, steps: int, batch_size: int, seed: int
) -> Any:
    """A CLIP text encoder trained to tell, at each place after the last word, the latents of the caption's picture.

    latents: float32 [n, d], one row a caption; each column is standardised, and the encoder learns a linear map to them
    by mean squared error. Returns the CLIPTextModel.
    """
    paddle.seed(seed)
    rng = np.random.default_rng(seed)
    encoder = build_text_encoder(tokenizer, HIDDEN, LAYERS, HEADS, MAX_LENGTH)
    targets = paddle.to_tensor((latents - latents.mean(0)) / (latents.std(0) + 1e-6))
    head = paddle.nn.Linear(HIDDEN, targets.shape[1])

    def loss_of(step):
        rows = rng.integers(0, len(captions), batch_size)
        texts = [_without_some_words(captions[row], rng) for row in rows]
        ids = paddle.to_tensor(tokenize(tokenizer, texts))
        after_words = (ids == tokenizer.eos_token_id).astype("float32").unsqueeze(-1)
        error = head(encoder(ids)[0]) - targets[paddle.to_tensor(rows)].unsqueeze(1)
        loss = (error.square().mean(-1, keepdim=True) * after_words).sum() / after_words.sum()
        return loss, {"loss": loss}

    clip = paddle.nn.ClipGradByGlobalNorm(1.0)
    minimise(loss_of, [*encoder.parameters(), *head.parameters()], 1e-3, steps, "text encoder", grad_clip=clip)
    return encoder.eval()


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> np.ndarray:
    """Token ids, int64 [n, MAX_LENGTH]; the end mark fills the places after the words."""
    ids = tokenizer(texts, padding="max_length", max_length=MAX_LENGTH, truncation=True)["input_ids"]
    return np.asarray(ids, np.int64)


def _without_some_words(caption, rng):
    words = caption.split()
    kept = [word for word, draw in zip(words, rng.random(len(words)), strict=True) if draw >= WORD_DROPOUT]
    return " ".join(kept or words)
