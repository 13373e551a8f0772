"""Tokenizer and text encoder of the captions."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddlenlp.transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from paddlenlp.transformers.clip.tokenizer import bytes_to_unicode
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tqdm import tqdm

START, END = "<|startoftext|>", "<|endoftext|>"
MAX_LENGTH = 16
VOCABULARY = 2500
HIDDEN, LAYERS, HEADS = 256, 3, 8
# Share of the words that a caption loses in a step, so that what is left means what all captions with it show.
WORD_DROPOUT = 0.15


def make_tokenizer(captions: list[str], folder: Path) -> CLIPTokenizer:
    """A byte-pair vocabulary of the captions in the files of CLIP's tokenizer, learned by the package `tokenizers`."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits(True)])
    alphabet = list(bytes_to_unicode().values())
    bpe.train_from_iterator(
        captions,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
        ),
    )
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    tokens = [*alphabet, *(c + "</w>" for c in alphabet), *(pair.replace(" ", "") for pair in merges), START, END]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": MAX_LENGTH, "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return CLIPTokenizer.from_pretrained(str(folder))


def train_text_encoder(
    tokenizer: CLIPTokenizer, captions: list[str], latents: np.ndarray, steps: int, batch_size: int, seed: int
) -> Any:
    """A CLIP text encoder trained to tell, at each place after the last word, the latents of the caption's picture.

    latents: float32 [n, d], one row a caption; each column is standardised, and the encoder learns a linear map to them
    by mean squared error. Returns the CLIPTextModel.
    """
    paddle.seed(seed)
    rng = np.random.default_rng(seed)
    marks = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=HIDDEN,
            intermediate_size=4 * HIDDEN,
            projection_dim=HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            max_position_embeddings=MAX_LENGTH,
            **marks,
        )
    )
    targets = paddle.to_tensor((latents - latents.mean(0)) / (latents.std(0) + 1e-6))
    head = paddle.nn.Linear(HIDDEN, targets.shape[1])
    rate = paddle.optimizer.lr.CosineAnnealingDecay(1e-3, steps)
    clip = paddle.nn.ClipGradByGlobalNorm(1.0)
    optimizer = paddle.optimizer.AdamW(rate, parameters=[*encoder.parameters(), *head.parameters()], grad_clip=clip)
    progress = tqdm(range(steps), desc="text encoder", unit="step", mininterval=2)
    for step in progress:
        rows = rng.integers(0, len(captions), batch_size)
        texts = [_without_some_words(captions[row], rng) for row in rows]
        ids = paddle.to_tensor(tokenize(tokenizer, texts))
        after_words = (ids == tokenizer.eos_token_id).astype("float32").unsqueeze(-1)
        error = head(encoder(ids)[0]) - targets[paddle.to_tensor(rows)].unsqueeze(1)
        loss = (error.square().mean(-1, keepdim=True) * after_words).sum() / after_words.sum()
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        rate.step()
        if step % 20 == 0:
            progress.set_postfix(loss=f"{float(loss):.4f}", refresh=False)
    return encoder.eval()


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> np.ndarray:
    """Token ids, int64 [n, MAX_LENGTH]; the end mark fills the places after the words."""
    ids = tokenizer(texts, padding="max_length", max_length=MAX_LENGTH, truncation=True)["input_ids"]
    return np.asarray(ids, np.int64)


def _without_some_words(caption, rng):
    words = caption.split()
    kept = [word for word, draw in zip(words, rng.random(len(words)), strict=True) if draw >= WORD_DROPOUT]
    return " ".join(kept or words)
