"""A cache of latents made row by row with the models' own calls, for tests of what reads it."""

from pathlib import Path

import numpy as np
import paddle

from sd.data.catalog import Catalog
from sd.data.moments import KIND, Manifest, encode_empty_state, encode_payload, manifest_path
from sd.data.part import PartReader, PartWriter, load_index
from sd.data.record import decode_row, encode_row
from sd.data.sample import centre_crop, decode_image
from sd.latents.hashes import weights_hash
from sd.model import StableDiffusionModel
from tests.data_maker import write_lists


def make_cache(folder, file_list, model_args, resolution, cache_text=False, **told):
    """Cache each record's centre crop beside each other. `told` goes into the manifest. Returns the file list."""
    folder = Path(folder)
    folder.mkdir(parents=True)
    model = StableDiffusionModel.from_arguments(model_args, resolution)
    models = model_args.pretrained_model_name_or_path
    values = {
        "vae_hash": weights_hash("vae", models, "vae"),
        "scaling_factor": model.scaling_factor,
        "resolution": resolution,
        "latent_shape": model.latent_shape(resolution),
        "crop": "centre",
    }
    if cache_text:
        (folder / "source0.empty.safetensors").write_bytes(encode_empty_state(text_state(model, "")))
        values |= {
            "text_encoder_hash": weights_hash("text_encoder", models, "text_encoder"),
            "tokenizer_hash": weights_hash("tokenizer", models, "tokenizer"),
            "model_max_length": model_args.model_max_length,
            "empty_state": "source0.empty.safetensors",
        }
    manifest = Manifest(**(values | told))
    parts = []
    for path in Catalog(file_list, resolution).paths:
        parts.append(folder / Path(path).name)
        index = load_index(path)
        with PartReader(path, index) as reader, PartWriter(parts[-1], kind=KIND) as writer:
            writer.notes["cache"] = manifest.id
            for row in range(index.num_rows):
                record = decode_row(reader.read(row))
                payload = encode_payload(*encode(model, record, resolution, cache_text))
                writer.add(encode_row(record.captions[0], payload), resolution, resolution)
    file_list = write_lists(folder, (1.0, parts))
    Path(manifest_path(folder / "source0.filelist")).write_bytes(manifest.to_bytes())
    return file_list


def encode(model, record, resolution, cache_text):
    """(moments [1,2C,h,w], text states [1,L,D] or None) of a record."""
    pixels = centre_crop(decode_image(record.image), resolution, "lanczos")[None]
    with paddle.no_grad():
        posterior = model.vae.encode(paddle.to_tensor(pixels).astype("float32") / 127.5 - 1).latent_dist
    moments = np.concatenate([posterior.mean.numpy(), posterior.logvar.numpy()], axis=1).astype(np.float16)
    return moments, text_state(model, record.captions[0])[None] if cache_text else None


def text_state(model, caption):
    """[L, D] float16."""
    with paddle.no_grad():
        return model.encode_text(paddle.to_tensor(model.tokenize(caption)[None])).numpy()[0].astype(np.float16)
