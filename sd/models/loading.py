"""The components of a Stable Diffusion model, each by its own flag or as a sub-folder of one repository.

A local folder or a whole model in one file is read here; a published name goes to ppdiffusers, which asks Paddle's
store, and then to the Hugging Face hub.
"""

import logging
import math
from pathlib import Path
from typing import Any

from sd.errors import InputError, first_line
from sd.models.hub import fetch_component, is_published_name
from sd.models.single_file import SingleFile, is_single_file
from sd.models.weights import find_weights, load_weights, read_config

FLAGS = {
    "vae": "vae_name_or_path",
    "text_encoder": "text_encoder_name_or_path",
    "unet": "unet_name_or_path",
    "tokenizer": "tokenizer_name",
}
PUBLISHED_TOKENIZERS = {"v1": "CompVis/stable-diffusion-v1-4", "v2": "stabilityai/stable-diffusion-2-1"}
logger = logging.getLogger(__name__)


def component_source(model_args: Any, component: str) -> tuple[str, str | None]:
    """(name or path, sub-folder or None) of a component: its own flag wins over the whole repository."""
    own = getattr(model_args, FLAGS[component])
    return (own, None) if own else (model_args.pretrained_model_name_or_path, component)


def load_component(component: str, name: str, subfolder: str | None = None, variant: str | None = None) -> Any:
    """Load "vae", "text_encoder", "unet" or "tokenizer" from a local folder or by its published name.

    A config file given for the UNet makes one with random weights. The layers come in float32 and evaluation mode; one
    log line says where each comes from. Raises InputError, in one line, where loading fails: there is no fallback to
    random weights.
    """
    if Path(name).is_file() and not is_single_file(name):
        if component == "unet" and subfolder is None and Path(name).suffix == ".json":
            unet = random_unet(name)
            logger.info("unet: %s random weights, configuration %s", _millions(unet), name)
            return unet
        raise InputError(
            f"--{FLAGS[component]} {name} is a file; expected a model's folder, one file or published name"
        )
    folder = local_folder(component, name, subfolder)
    origin = folder or (name if is_single_file(name) else "/".join(filter(None, (str(name), subfolder))))
    if is_single_file(name):
        loaded = _load_from_single_file(component, name)
    elif folder is None:
        loaded = _load_published(component, str(name), subfolder, variant)
    else:
        loaded = _load_tokenizer(folder) if component == "tokenizer" else _load_layer(component, folder, variant)
    if component == "tokenizer":
        logger.info("tokenizer: %d tokens loaded from %s", len(loaded), origin)
    else:
        logger.info(
            "%s: %s weights loaded from %s%s", component, _millions(loaded), origin, f" ({variant})" if variant else ""
        )
    return loaded


def _millions(layer):
    count = sum(parameter.size for parameter in layer.parameters())
    return f"{count / 1e6:.4g} M" if count >= 1e6 else f"{count:,}"


class DeferredComponent:
    """A component with lazy loading: the configuration is read at once, the weights when `load` is called.

    Takes the arguments of `load_component`, for "vae" or "text_encoder". Attributes: config; num_parameters. Raises
    InputError at once if the configuration cannot be loaded.
    """

    def __init__(self, component: str, name: str, subfolder: str | None = None):
        self._source = component, name, subfolder
        folder = local_folder(component, name, subfolder)
        if is_single_file(name):
            config = SingleFile(name).configs[component]
        elif folder is None:
            config = _published_config(component, str(name), subfolder)
        else:
            config = read_config(folder / "config.json")
        layer = _build_empty(component, config, folder / "config.json" if folder else name)
        self.config = layer.config
        self.num_parameters = sum(math.prod(parameter.shape) for parameter in layer.parameters())

    @property
    def origin(self) -> str:
        """Folder, file or published name."""
        return "/".join(filter(None, map(str, self._source[1:])))

    def load(self) -> Any:
        """The layer with its weights, in evaluation mode."""
        logger.info("loading the %s, which the cache stood in for until now", self._source[0].replace("_", " "))
        return load_component(*self._source)


def component_config(component: str, name: str, subfolder: str | None = None) -> Any:
    """The configuration of "vae", "text_encoder" or "unet", without its weights; of a UNet its file may be named too.

    Arguments and errors as of `load_component`."""
    if is_single_file(name):
        return SingleFile(name).configs[component]
    if Path(name).is_file():
        return read_config(name)
    folder = local_folder(component, name, subfolder)
    return _published_config(component, str(name), subfolder) if folder is None else read_config(folder / "config.json")


def side_multiple(model_args: Any) -> int:
    """What every side of an image must be a multiple of, in pixels, for VAE and UNet to halve it, by what their
    configurations say. model_args: see `component_source`."""
    levels = (_num_levels(component, *component_source(model_args, component)) for component in ("vae", "unet"))
    return math.prod(2 ** (number - 1) for number in levels)


def _num_levels(component, name, subfolder):
    config = component_config(component, name, subfolder)
    if "block_out_channels" not in config:  # left to the class
        config = _build_empty(component, config, name).config
    return len(config["block_out_channels"])


def local_folder(component: str, name: str, subfolder: str | None = None) -> Path | None:
    """The folder of a component that is named by its path; None for a whole model's file and for a published name.
    Raises InputError for none of them."""
    if is_single_file(name):
        return None
    if Path(name).is_dir():
        folder = Path(name, subfolder or "")
        if not folder.is_dir():
            raise InputError(f"{name}: no sub-folder {subfolder!r}; expected one, or --{FLAGS[component]} beside it")
        return folder
    if not is_published_name(str(name)):
        raise InputError(f"--{FLAGS[component]} {name}: no such folder" + (" or file" if component == "unet" else ""))
    return None


def local_vae_factor(folder: Path | None) -> int | None:
    """What a VAE divides the sides of a picture by, as its `local_folder` says without Paddle; None if it does not."""
    levels = read_config(folder / "config.json").get("block_out_channels") if folder else None
    return 2 ** (len(levels) - 1) if levels else None


def random_unet(config_path: str | Path) -> Any:
    """A UNet from a configuration alone, with the layers that end each residual branch set to zero."""
    import paddle
    from ppdiffusers.models.resnet import ResnetBlock2D
    from ppdiffusers.models.transformer_2d import Transformer2DModel
    from ppdiffusers.utils.initializer_utils import reset_initialized_parameter

    unet = _build("unet", read_config(config_path), config_path)
    reset_initialized_parameter(unet)
    last_layers = [unet.conv_out]
    for layer in unet.sublayers():
        if isinstance(layer, ResnetBlock2D):
            last_layers.append(layer.conv2)
        elif isinstance(layer, Transformer2DModel):
            last_layers.append(layer.proj_out)
    with paddle.no_grad():
        for layer in last_layers:
            for parameter in layer.parameters():
                parameter.zero_()
    return unet


def in_data_format(unet: Any, data_format: str) -> Any:
    """A copy of a UNet that convolves in another layout, NHWC or NCHW; weights, their names and the configuration that
    a checkpoint holds stay. Latents go in and come out as [B,C,h,w] in both."""
    saved_format = unet.config.get("data_format", "NCHW")
    layer = _build_empty("unet", {**unet.config, "data_format": data_format}, f"data_format {data_format}")
    weights = unet.state_dict()
    for name, parameter in layer.state_dict().items():
        parameter.set_value(weights[name])
    layer.register_to_config(data_format=saved_format)
    return layer


def _layer_class(component):
    import ppdiffusers
    from ppdiffusers import transformers

    return {
        "vae": ppdiffusers.AutoencoderKL,
        "text_encoder": transformers.CLIPTextModel,
        "unet": ppdiffusers.UNet2DConditionModel,
    }[component]


def _build(component, config, path):
    layer_class = _layer_class(component)
    groups, widths = config.get("norm_num_groups"), config.get("block_out_channels", [])
    if groups and any(width % groups for width in widths):
        raise InputError(f"{path}: block_out_channels={widths}; expected multiples of norm_num_groups={groups}")
    try:
        if component == "text_encoder":
            return layer_class(layer_class.config_class(**config)).eval()
        return layer_class.from_config(config).eval()
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"{path}: makes no {layer_class.__name__} ({first_line(error)})") from error


def _build_empty(component, config, path):
    """A layer whose weights take no memory until they are set."""
    import paddle
    from paddlenlp.transformers.model_utils import no_init_weights

    with paddle.LazyGuard(), no_init_weights():
        return _build(component, config, path)


def _load_layer(component, folder, variant):
    weights = find_weights(folder, variant)
    layer = _build_empty(component, read_config(folder / "config.json"), folder / "config.json")
    load_weights(layer, weights)
    return layer


def _load_from_single_file(component, path):
    """A component out of a whole model in one file, which has no tokenizer: v1's or v2's is fetched by name."""
    file = SingleFile(path)
    if component == "tokenizer":
        name = PUBLISHED_TOKENIZERS["v2" if file.is_v2 else "v1"]
        logger.info("%s holds no tokenizer; taking that of %s (--tokenizer_name names another)", path, name)
        return load_component(component, name, "tokenizer")
    layer = _build_empty(component, file.configs[component], path)
    file.load_weights(component, layer)
    return layer


def _load_tokenizer(folder):
    from ppdiffusers.transformers import CLIPTokenizer

    missing = [name for name in ("vocab.json", "merges.txt") if not (folder / name).is_file()]
    if missing:
        raise InputError(f"{folder}: no {missing[0]}; expected the folder of a CLIP tokenizer")
    try:
        return CLIPTokenizer.from_pretrained(str(folder))
    except (ValueError, KeyError, OSError) as error:
        raise InputError(f"{folder}: not a CLIP tokenizer ({first_line(error)})") from error


def _load_published(component, name, subfolder, variant):
    if component == "tokenizer":
        from ppdiffusers.transformers import CLIPTokenizer as PartClass
    else:
        PartClass = _layer_class(component)  # noqa: N806
    logger.info("fetching the published %s", "/".join(filter(None, (name, subfolder))))
    options = {"subfolder": subfolder} if subfolder else {}
    if variant:
        options["variant"] = variant
    try:
        return PartClass.from_pretrained(name, **options)
    except Exception as error:  # the libraries raise whatever the failing layer below them raised
        folder = _fetch_from_hub(component, name, subfolder, variant, after=error)
    return _load_tokenizer(folder) if component == "tokenizer" else _load_layer(component, folder, variant)


def _published_config(component, name, subfolder):
    """The configuration of a published component as a dict; its weights are not fetched."""
    options = {"subfolder": subfolder} if subfolder else {}
    layer_class = _layer_class(component)
    try:
        if component == "text_encoder":
            return layer_class.config_class.from_pretrained(name, **options).to_dict()
        return layer_class.load_config(name, **options)
    except Exception as error:  # as above
        return read_config(_fetch_from_hub(component, name, subfolder, weights=False, after=error) / "config.json")


def _fetch_from_hub(component, name, subfolder, variant=None, *, weights=True, after):
    """The folder of a component that Paddle's store did not give (`after`: its error), from the Hugging Face hub."""
    full_name = "/".join(filter(None, (name, subfolder)))
    if "/" in name:
        try:
            return fetch_component(name, subfolder, variant, weights=weights)
        except Exception as error:  # requests', huggingface_hub's and the file system's errors have no common base
            hub = first_line(error)
    else:
        hub = "no owner/model"
    raise InputError(
        f"{full_name} could not be loaded: no such local folder; Paddle's store (PPNLP_ENDPOINT): {first_line(after)}; "
        f"Hugging Face hub (HF_ENDPOINT): {hub}; with no network, point --{FLAGS[component]} or "
        "--pretrained_model_name_or_path to a local folder or file"
    ) from after
