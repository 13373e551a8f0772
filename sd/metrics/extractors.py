"""Pictures and texts -> the features that FID and CLIP score compare: FID's Inception, or a CLIP by folder or name."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import paddle
from PIL import Image

from sd.data.images.resize import resize
from sd.errors import InputError, first_line
from sd.metrics.inception import FEATURES, load_inception
from sd.metrics.inputs import WEIGHT_SUFFIXES
from sd.models.encoders import tokenize
from sd.models.hashes import content_id
from sd.models.weights import find_weights, load_weights, read_config

# What CLIP's pictures are normalised by, where its preprocessor_config.json does not say otherwise.
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class InceptionFeatures:
    """FID's own features. path: the PyTorch port's weights, its own .pth file or a .safetensors one."""

    def __init__(self, path: str | Path):
        self.name, self.width = "inception-v3", FEATURES
        self._network = load_inception(path)

    def identity(self) -> str:
        """What its features depend on: its weights by their content."""
        return f"{self.name} {content_id(self._network)}"

    @paddle.no_grad()
    def embed_images(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """uint8 [N,H,W,3] -> float32 [N, width]."""
        pixels = paddle.to_tensor(np.stack(images).transpose([0, 3, 1, 2])).astype("float32") / 127.5 - 1
        return self._network(pixels).numpy()


class ClipFeatures:
    """A CLIP in Hugging Face's layout (config.json, safetensors, tokenizer), from a folder or by published name."""

    def __init__(self, source: str):
        from ppdiffusers.transformers import CLIPTokenizer

        folder = Path(source)
        if folder.is_dir():
            self._model = _build_clip(read_config(folder / "config.json"), folder)
            load_weights(self._model, find_weights(folder))
            self._tokenizer = CLIPTokenizer.from_pretrained(str(folder))
            preprocessor = folder / "preprocessor_config.json"
            options = json.loads(preprocessor.read_text()) if preprocessor.is_file() else {}
        else:
            self._model, self._tokenizer = _published_clip(str(source))
            options = {}
        self._model.eval()
        config = self._model.config
        self.name, self.width = f"clip {folder.name}", config.projection_dim
        self._side, self._length = config.vision_config.image_size, config.text_config.max_position_embeddings
        self._mean = np.array(options.get("image_mean", _CLIP_MEAN), np.float32)
        self._std = np.array(options.get("image_std", _CLIP_STD), np.float32)

    def identity(self) -> str:
        """What its picture features depend on: its weights by their content, and how pictures are normalised."""
        return f"{self.name} {content_id(self._model)} {self._side} {self._mean.tolist()} {self._std.tolist()}"

    @paddle.no_grad()
    def embed_images(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """uint8 [N,H,W,3] -> float32 [N, width], before normalisation to length one."""
        pixels = np.stack([_square(image, self._side) for image in images]).astype(np.float32) / 255
        pixels = ((pixels - self._mean) / self._std).transpose([0, 3, 1, 2])
        return self._model.get_image_features(paddle.to_tensor(pixels)).numpy()

    @paddle.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """N strings -> float32 [N, width]; what is too long is cut."""
        ids = tokenize(self._tokenizer, list(texts), self._length)
        return self._model.get_text_features(paddle.to_tensor(ids)).numpy()


def load_fid_extractor(source: str) -> InceptionFeatures | ClipFeatures:
    """Inception from a file of weights, or a CLIP's picture features. Raises InputError if it is neither."""
    path = Path(source)
    if path.suffix in WEIGHT_SUFFIXES:
        return InceptionFeatures(path)
    return load_clip(source)


def load_clip(source: str) -> ClipFeatures:
    """A CLIP from a folder or by its published name. Raises InputError if it cannot be loaded."""
    return ClipFeatures(source)


def _build_clip(config, folder):
    from ppdiffusers.transformers import CLIPConfig, CLIPModel

    if config.get("model_type") != "clip":
        raise InputError(f"{folder}: model_type={config.get('model_type')!r}; expected a folder of a CLIP model")
    return CLIPModel(CLIPConfig(**config))


def _published_clip(name):
    from ppdiffusers.transformers import CLIPModel, CLIPTokenizer

    try:
        return CLIPModel.from_pretrained(name), CLIPTokenizer.from_pretrained(name)
    except Exception as error:  # the libraries raise whatever the failing layer below them raised
        raise InputError(
            f"CLIP {name!r} could not be loaded ({first_line(error)}); point to a local folder of it"
        ) from error


def _square(image, side):
    """Short side to `side` by bicubic resampling, then the square in the middle: CLIP's way."""
    height, width = image.shape[:2]
    scale = side / min(height, width)
    size = (max(side, round(width * scale)), max(side, round(height * scale)))
    picture = resize(Image.fromarray(image), size, interpolation="bicubic")
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    return picture[top : top + side, left : left + side]
