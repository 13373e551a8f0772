"""A CLIP as published on the Hugging Face hub (openai/clip-vit-large-patch14 and the like), by its names of weights."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from sd.metrics.extractors import load_clip
from tests.numeric import assert_close
from tests.tiny import make_tokenizer_files

DEMO = Path(__file__).resolve().parents[2] / "demo" / "tiny_clip"
TEXT, VISION, JOINT, SIDE, PATCH, LENGTH = 16, 24, 12, 28, 14, 77


def tower(prefix, width, layers):
    """Weights of one transformer under the names of `transformers`, matrices as PyTorch keeps them: [out, in]."""
    shapes = {}
    for number in range(layers):
        layer = f"{prefix}.encoder.layers.{number}"
        for name in ("q", "k", "v", "out"):
            shapes[f"{layer}.self_attn.{name}_proj.weight"] = (width, width)
            shapes[f"{layer}.self_attn.{name}_proj.bias"] = (width,)
        shapes |= {f"{layer}.mlp.fc1.weight": (4 * width, width), f"{layer}.mlp.fc1.bias": (4 * width,)}
        shapes |= {f"{layer}.mlp.fc2.weight": (width, 4 * width), f"{layer}.mlp.fc2.bias": (width,)}
        for name in ("layer_norm1", "layer_norm2"):
            shapes |= {f"{layer}.{name}.weight": (width,), f"{layer}.{name}.bias": (width,)}
    return shapes


def published_shapes(vocabulary):
    patches = (SIDE // PATCH) ** 2
    shapes = {"logit_scale": (), "text_projection.weight": (JOINT, TEXT), "visual_projection.weight": (JOINT, VISION)}
    shapes |= {
        "text_model.embeddings.token_embedding.weight": (vocabulary, TEXT),
        "text_model.embeddings.position_embedding.weight": (LENGTH, TEXT),
        "text_model.final_layer_norm.weight": (TEXT,),
        "text_model.final_layer_norm.bias": (TEXT,),
        "vision_model.embeddings.class_embedding": (VISION,),
        "vision_model.embeddings.patch_embedding.weight": (VISION, 3, PATCH, PATCH),
        "vision_model.embeddings.position_embedding.weight": (patches + 1, VISION),
    }
    for name in ("pre_layrnorm", "post_layernorm"):  # so spelt in the published files
        shapes |= {f"vision_model.{name}.weight": (VISION,), f"vision_model.{name}.bias": (VISION,)}
    return shapes | tower("text_model", TEXT, 2) | tower("vision_model", VISION, 3)


@pytest.fixture
def published(tmp_path):
    """(folder, weights) in the published layout: old position ids too, and the configuration's doubled parts."""
    vocabulary = make_tokenizer_files(tmp_path)
    rng = np.random.default_rng(0)
    weights = {
        name: np.asarray(rng.standard_normal(shape) * 0.2, np.float32)
        for name, shape in published_shapes(vocabulary).items()
    }
    buffers = {
        "text_model.embeddings.position_ids": np.arange(LENGTH)[None],
        "vision_model.embeddings.position_ids": np.arange((SIDE // PATCH) ** 2 + 1)[None],
    }
    save_file(weights | buffers, tmp_path / "model.safetensors", metadata={"format": "pt"})
    text = {"hidden_size": TEXT, "intermediate_size": 4 * TEXT, "num_hidden_layers": 2, "num_attention_heads": 2,
            "vocab_size": vocabulary, "max_position_embeddings": LENGTH, "hidden_act": "quick_gelu",
            "projection_dim": JOINT, "bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1,
            "model_type": "clip_text_model", "torch_dtype": None, "transformers_version": "4.16.0.dev0"}  # fmt: skip
    vision = {"hidden_size": VISION, "intermediate_size": 4 * VISION, "num_hidden_layers": 3, "num_attention_heads": 2,
              "image_size": SIDE, "patch_size": PATCH, "hidden_act": "quick_gelu", "projection_dim": JOINT,
              "model_type": "clip_vision_model"}  # fmt: skip
    config = {"architectures": ["CLIPModel"], "initializer_factor": 1.0, "logit_scale_init_value": 2.6592,
              "model_type": "clip", "projection_dim": JOINT, "torch_dtype": "float32", "transformers_version": None,
              "text_config": text, "text_config_dict": dict(text), "vision_config": vision,
              "vision_config_dict": dict(vision)}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copy(DEMO / "preprocessor_config.json", tmp_path)
    return tmp_path, weights


def normed(x, weights, name):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def transform(x, weights, prefix, layers, mask):
    """The transformer in NumPy float64: x [L, D], two heads."""
    for number in range(layers):
        layer = f"{prefix}.encoder.layers.{number}"

        def linear(y, name, layer=layer):
            return y @ weights[f"{layer}.{name}.weight"].T + weights[f"{layer}.{name}.bias"]

        y = normed(x, weights, f"{layer}.layer_norm1")
        heads = []
        for q, k, v in zip(*(np.split(linear(y, f"self_attn.{n}_proj"), 2, 1) for n in "qkv"), strict=True):
            scores = np.exp(q @ k.T / np.sqrt(q.shape[1]) + mask)
            heads.append(scores / scores.sum(1, keepdims=True) @ v)
        x = x + linear(np.concatenate(heads, 1), "self_attn.out_proj")
        y = linear(normed(x, weights, f"{layer}.layer_norm2"), "mlp.fc1")
        x = x + linear(y / (1 + np.exp(-1.702 * y)), "mlp.fc2")
    return x


def layer_terms(width, tokens):
    """The terms of a layer's sums, one after another: two norms, q k v and out, scores, values, fc1, fc2; and float32
    norms and exponentials, which are off by a few roundings more."""
    return 2 * width + 2 * width + width // 2 + tokens + width + 4 * width + 20


def test_a_published_clip_agrees_with_its_paper(published):
    folder, weights = published
    clip = load_clip(str(folder))
    weights = {name: value.astype(np.float64) for name, value in weights.items()}
    image = np.random.default_rng(1).integers(0, 256, [SIDE, SIDE, 3], dtype=np.uint8)
    pixels = (image / 255 - clip._mean) / clip._std
    cut = pixels.reshape(2, PATCH, 2, PATCH, 3).transpose(0, 2, 4, 1, 3).reshape(4, -1)
    tokens = cut @ weights["vision_model.embeddings.patch_embedding.weight"].reshape(VISION, -1).T
    x = np.concatenate([weights["vision_model.embeddings.class_embedding"][None], tokens])
    x = normed(x + weights["vision_model.embeddings.position_embedding.weight"], weights, "vision_model.pre_layrnorm")
    x = transform(x, weights, "vision_model", 3, 0)
    expected = normed(x[0], weights, "vision_model.post_layernorm") @ weights["visual_projection.weight"].T
    assert_close(clip.embed_images([image])[0], expected, 3 * PATCH**2 + 3 * layer_terms(VISION, 5) + VISION)

    ids = np.array(clip._tokenizer(["a red circle"], padding="max_length", max_length=LENGTH)["input_ids"][0])
    end = int(np.argmax(ids))  # the end mark has the highest number
    x = weights["text_model.embeddings.token_embedding.weight"][ids]
    x = x + weights["text_model.embeddings.position_embedding.weight"]
    x = transform(x, weights, "text_model", 2, np.triu(np.full([LENGTH, LENGTH], -1e9), 1))
    expected = normed(x[end], weights, "text_model.final_layer_norm") @ weights["text_projection.weight"].T
    assert_close(clip.embed_texts(["a red circle"])[0], expected, 2 * layer_terms(TEXT, LENGTH) + TEXT)
