"""The two encoders as functions of a batch; training and the latent cache go through the same lines."""

from typing import Any

import numpy as np
import paddle
from paddle import Tensor

from sd.errors import InputError

_CHARS_PER_TOKEN = 64  # a text has 4 or 5 on average


def encode_posterior(vae: Any, pixel_values: Tensor) -> Any:
    """The VAE's posterior of pictures, in float32 whatever the training computes in.

    pixel_values: [B,3,H,W], uint8 or float32 in [0, 255]. Returns a distribution with `mean`, `logvar` and `std`,
    each [B,C,h,w], not scaled.
    """
    with paddle.amp.auto_cast(enable=False):
        return vae.encode(pixel_values.astype("float32") / 127.5 - 1.0).latent_dist


def check_text(tokenizer: Any, config: Any, max_length: int) -> None:
    """Raise InputError unless a tokenizer's ids, `max_length` of them, fit the text encoder of this configuration."""
    if max_length > config.max_position_embeddings:
        raise InputError(
            f"--model_max_length {max_length}: the text encoder has positions for {config.max_position_embeddings} "
            "tokens; use at most that"
        )
    if len(tokenizer) > config.vocab_size:
        raise InputError(
            f"the tokenizer has {len(tokenizer)} tokens, the text encoder has {config.vocab_size}; "
            "use the tokenizer that belongs to the text encoder"
        )


def tokenize(tokenizer: Any, texts: str | list[str], max_length: int) -> np.ndarray:
    """Token ids cut or padded to `max_length`: int64 [L] of one text, [n,L] of a list. NumPy only, for data workers."""
    truncated = (
        truncate(texts, max_length) if isinstance(texts, str) else [truncate(text, max_length) for text in texts]
    )
    encoded = tokenizer(truncated, padding="max_length", truncation=True, max_length=max_length)
    return np.array(encoded["input_ids"], np.int64)


def truncate(text: str, max_length: int) -> str:
    """A text without what lies far beyond `max_length` tokens: byte pair encoding takes a word's length squared."""
    max_chars = _CHARS_PER_TOKEN * max_length
    return text if len(text) <= max_chars else " ".join(text.split())[:max_chars]


def causal_mask(length: int) -> np.ndarray:
    """What keeps each of `length` tokens from seeing later ones: float32 [1,1,L,L]."""
    return np.triu(np.full((1, 1, length, length), np.finfo(np.float32).min, np.float32), k=1)


def encode_text(text_encoder: Any, input_ids: Tensor, mask: Any) -> Tensor:
    """Last hidden state of the text encoder, [B,L,D]. input_ids: int64 [B,L]; mask: `causal_mask` of L or more.

    Calls the encoder's layers one by one: its own forward makes the causal mask with a value read back from the
    device, and a pooled state that nobody uses.
    """
    text_model = text_encoder.text_model
    batch_size, length = input_ids.shape
    hidden_states = text_model.embeddings(input_ids=input_ids)
    mask = mask[:, :, :length, :length].astype(hidden_states.dtype).expand([batch_size, 1, length, length])
    hidden_states = text_model.encoder(inputs_embeds=hidden_states, causal_attention_mask=mask)[0]
    return text_model.final_layer_norm(hidden_states)
