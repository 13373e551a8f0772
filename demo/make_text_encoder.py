"""A small CLIP text encoder, trained to say in its last position what the caption describes."""

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn
from paddlenlp.transformers import CLIPTextConfig, CLIPTextModel
from tqdm import tqdm

from demo.shapes import ALL_LABELS, BACKGROUNDS, COLOURS, SHAPES, caption_of

HIDDEN = 64
POSITIONS = 77
CLASSES = (tuple(COLOURS), SHAPES, tuple(BACKGROUNDS))


def _captions_and_targets():
    """All captions and, for each, the numbers of its colour, shape and background."""
    targets = [[names.index(label) for names, label in zip(CLASSES, labels, strict=True)] for labels in ALL_LABELS]
    return [caption_of(*labels) for labels in ALL_LABELS], np.array(targets)


def train_text_encoder(tokenizer, steps, seed):
    """Train on every caption at once, `steps` times.

    Colour, shape and background must be read by a linear map from the mean over the tokens after the last word's,
    so that each of these positions, which the UNet attends to, carries the meaning of the whole caption.
    Returns the CLIPTextModel.
    """
    paddle.seed(seed)
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=HIDDEN,
            intermediate_size=4 * HIDDEN,
            projection_dim=HIDDEN,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=POSITIONS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    captions, targets = _captions_and_targets()
    ids = tokenizer(captions, padding="max_length", max_length=POSITIONS, truncation=True)["input_ids"]
    ids, targets = paddle.to_tensor(ids, dtype="int64"), paddle.to_tensor(targets)
    after_words = (ids == tokenizer.eos_token_id).astype("float32").unsqueeze(-1)
    heads = nn.LayerList([nn.Linear(HIDDEN, len(names)) for names in CLASSES])
    rate = paddle.optimizer.lr.CosineAnnealingDecay(2e-3, steps)
    optimizer = paddle.optimizer.AdamW(rate, parameters=[*encoder.parameters(), *heads.parameters()])
    progress = tqdm(range(steps), desc="text encoder", unit="step", mininterval=2)
    for step in progress:
        hidden = encoder(ids)[0] * after_words
        logits = [head(hidden) for head in heads]
        per_token = [
            F.cross_entropy(z, targets[:, i : i + 1].expand(z.shape[:2]).unsqueeze(-1), reduction="none")
            for i, z in enumerate(logits)
        ]
        loss = sum((entropy * after_words).sum() for entropy in per_token) / after_words.sum()
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        rate.step()
        if step % 20 == 0:
            progress.set_postfix(loss=f"{float(loss):.4f}", refresh=False)
    return encoder.eval()
