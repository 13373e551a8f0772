"""A small CLIP text encoder, trained to say in its last position what the caption describes."""

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn
from paddlenlp.transformers import CLIPTextConfig, CLIPTextModel

from demo.descent import minimise
from demo.shapes import ALL_LABELS, BACKGROUNDS, COLOURS, SHAPES, caption_of

HIDDEN = 64
POSITIONS = 77
CLASSES = (tuple(COLOURS), SHAPES, tuple(BACKGROUNDS))


def _captions_and_targets():
    """All captions and, for each, the numbers of its colour, shape and background."""
    targets = [[names.index(label) for names, label in zip(CLASSES, labels, strict=True)] for labels in ALL_LABELS]
    return [caption_of(*labels) for labels in ALL_LABELS], np.array(targets)


def build_text_encoder(tokenizer, hidden, layers, heads, positions):
    """An untrained CLIPTextModel with the marks of `tokenizer`; positions: longest text in tokens."""
    marks = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=4 * hidden,
            projection_dim=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=positions,
            **marks,
        )
    )


def train_text_encoder(tokenizer, steps, seed):
    """Train on every caption at once, `steps` times.

    Colour, shape and background must be read by a linear map from the mean over the tokens after the last word's,
    so that each of these positions, which the UNet attends to, carries the meaning of the whole caption.
    Returns the CLIPTextModel.
    """
    paddle.seed(seed)
    encoder = build_text_encoder(tokenizer, HIDDEN, layers=2, heads=4, positions=POSITIONS)
    captions, targets = _captions_and_targets()
    ids = tokenizer(captions, padding="max_length", max_length=POSITIONS, truncation=True)["input_ids"]
    ids, targets = paddle.to_tensor(ids, dtype="int64"), paddle.to_tensor(targets)
    after_words = (ids == tokenizer.eos_token_id).astype("float32").unsqueeze(-1)
    heads = nn.LayerList([nn.Linear(HIDDEN, len(names)) for names in CLASSES])

    def loss_of(step):
        hidden = encoder(ids)[0] * after_words
        logits = [head(hidden) for head in heads]
        per_token = [
            F.cross_entropy(z, targets[:, i : i + 1].expand(z.shape[:2]).unsqueeze(-1), reduction="none")
            for i, z in enumerate(logits)
        ]
        loss = sum((entropy * after_words).sum() for entropy in per_token) / after_words.sum()
        return loss, {"loss": loss}

    minimise(loss_of, [*encoder.parameters(), *heads.parameters()], 2e-3, steps, "text encoder")
    return encoder.eval()
