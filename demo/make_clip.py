"""A small CLIP for the demo's pictures, so that `eval.py --metrics` works without a network.

    python -m demo.make_clip --output demo/tiny_clip

It is trained to tell each drawing's caption from the 35 others, on drawings that are also blurred by noise, and serves
both for the CLIP score and, by its picture features, in place of FID's Inception. Its scores compare checkpoints of
the demo, nothing else.
"""

import argparse
import json
import shutil
from pathlib import Path

from sd import runtime

runtime.prepare()

import numpy as np  # noqa: E402
import paddle  # noqa: E402
import paddle.nn.functional as F  # noqa: E402
from ppdiffusers.transformers import CLIPConfig, CLIPModel, CLIPTokenizer  # noqa: E402

from demo.descent import minimise  # noqa: E402
from demo.shapes import ALL_LABELS, caption_of, example  # noqa: E402

SIZE, BATCH, HELD_OUT = 32, 64, 1_000_000
WIDTH, LAYERS = 48, 2
FOLDER = Path(__file__).resolve().parent


def pictures(indices):
    """Drawings as float32 [N,3,32,32] in [-1,1], and the numbers of their captions."""
    drawn = [example(int(index), 7, SIZE)[0] for index in indices]
    pixels = np.stack(drawn).transpose([0, 3, 1, 2]).astype(np.float32) / 127.5 - 1
    return pixels, np.array([int(index) % len(ALL_LABELS) for index in indices])


def build(tokenizer, seed):
    paddle.seed(seed)
    tower = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "projection_dim": WIDTH,
    }
    text = tower | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 24,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = tower | {"image_size": SIZE, "patch_size": 8}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH))


def train(model, ids, steps, seed):
    rng = np.random.default_rng(seed)

    def loss_of(step):
        pixels, targets = pictures(rng.integers(0, HELD_OUT, BATCH))
        pixels += rng.uniform(0, 0.4, [BATCH, 1, 1, 1]) * rng.standard_normal(pixels.shape)
        images = F.normalize(model.get_image_features(paddle.to_tensor(pixels.astype(np.float32))), axis=-1)
        texts = F.normalize(model.get_text_features(ids), axis=-1)
        logits = model.logit_scale.exp() * images @ texts.T
        loss = F.cross_entropy(logits, paddle.to_tensor(targets))
        return loss, {"loss": loss}

    minimise(loss_of, model.parameters(), 2e-3, steps, "CLIP")
    model.eval()


@paddle.no_grad()
def accuracy(model, ids):
    """Share of held-out drawings whose caption is the nearest."""
    pixels, targets = pictures(range(HELD_OUT, HELD_OUT + 360))
    images = F.normalize(model.get_image_features(paddle.to_tensor(pixels)), axis=-1)
    texts = F.normalize(model.get_text_features(ids), axis=-1)
    return float(((images @ texts.T).argmax(-1).numpy() == targets).mean())


def main():
    parser = argparse.ArgumentParser(description="Train the demo's CLIP.")
    parser.add_argument("--output", type=Path, default=FOLDER / "tiny_clip")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    tokenizer_folder = FOLDER / "tiny_sd" / "tokenizer"
    tokenizer = CLIPTokenizer.from_pretrained(str(tokenizer_folder))
    captions = [caption_of(*labels) for labels in ALL_LABELS]
    ids = tokenizer(captions, padding="max_length", max_length=24, truncation=True)["input_ids"]
    ids = paddle.to_tensor(np.array(ids, np.int64))
    model = build(tokenizer, flags.seed)
    train(model, ids, flags.steps, flags.seed)
    print(f"held-out drawings matched to their caption: {accuracy(model, ids):.1%}")
    model.save_pretrained(str(flags.output), safe_serialization=True)
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copy(tokenizer_folder / name, flags.output / name)
    normalisation = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (flags.output / "preprocessor_config.json").write_text(json.dumps(normalisation) + "\n")


if __name__ == "__main__":
    main()
