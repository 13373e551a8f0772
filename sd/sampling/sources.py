"""Which folders or published names the components of a pipeline come from, looked up and checked without Paddle."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sd.errors import ArgumentError, InputError
from sd.models.hub import is_published_name
from sd.models.loading import local_folder, local_vae_factor
from sd.models.single_file import is_single_file
from sd.runs.locate import PUBLISHED, Location, find_unet, run_settings
from sd.sampling.settings import check_scheduler, check_sides


@dataclass(frozen=True)
class Sources:
    """location: of the UNet; run: what its checkpoint was trained with, flag -> value; repository: the model around
    what has no source of its own; components: component -> (name or folder, sub-folder, variant)."""

    location: Location
    run: dict[str, Any]
    repository: str
    components: dict[str, tuple[str, str | None, str | None]]

    def check(self, height: int | None = None, width: int | None = None, scheduler: str | None = None) -> None:
        """Raise InputError for a component that is not there, and for settings that these models cannot follow, as far
        as local files say it."""
        folders = {component: local_folder(component, *source[:2]) for component, source in self.components.items()}
        if factor := local_vae_factor(folders["vae"]):
            check_sides(factor, height, width)
        check_scheduler(scheduler, bool(self.run.get("rescale_betas_zero_snr")))


def find_sources(
    unet: str | Path | None = None,
    *,
    pretrained_model: str | None = None,
    text_encoder: str | None = None,
    vae: str | None = None,
    tokenizer: str | None = None,
    variant: str | None = None,
) -> Sources:
    """The sources of what is named; what is not comes from the checkpoint or pipeline around the UNet, else from what
    its run was trained with, else from the published Stable Diffusion v1-4.

    unet: see `sd.runs.locate.find_unet`. variant: `ema` for the moving average. Raises InputError for a UNet or a
    variant that is not there.
    """
    if pretrained_model is not None and not (Path(pretrained_model).exists() or is_published_name(pretrained_model)):
        raise ArgumentError("pretrained_model", pretrained_model, ": no such folder or file")
    location = find_unet(str(unet)) if unet is not None else _unet_of(pretrained_model or PUBLISHED)
    folder = Path(location.folder)
    if variant and folder.exists() and not any(folder.glob(f"*.{variant}.*")):
        raise InputError(f"{folder} has no weights of variant {variant!r}; leave it out, or train with --use_ema")
    run = run_settings(location.checkpoint)
    if pretrained_model is None:
        pretrained_model = _whole_model(folder)
    repository = pretrained_model or run.get("pretrained_model_name_or_path") or PUBLISHED
    own = {} if pretrained_model else run
    trained_text = location.checkpoint / "text_encoder" if location.checkpoint else Path()
    named = {
        "vae": vae or own.get("vae_name_or_path"),
        "text_encoder": text_encoder
        or (str(trained_text) if (trained_text / "config.json").is_file() else own.get("text_encoder_name_or_path")),
        "tokenizer": tokenizer or own.get("tokenizer_name"),
    }
    components: dict[str, tuple[str, str | None, str | None]] = {"unet": (location.folder, None, variant)}
    components |= {
        component: (name, None, None) if name else (repository, component, None) for component, name in named.items()
    }
    return Sources(location, run, repository, components)


def fixed_unet(unet: str | Path | None, **names: Any) -> str:
    """A name of the UNet that `find_sources` finds now by these arguments. `output_dir` names another one as soon as
    training has saved it, which processes that load it one after another must not follow."""
    location = find_sources(unet, **names).location
    return str(location.checkpoint or location.folder)


def _unet_of(model: str) -> Location:
    """The UNet of a pretrained model by folder, file or published name."""
    if is_single_file(model):
        return find_unet(model)
    if Path(model).exists():
        local_folder("unet", model, "unet")  # raises for a folder without one, which is no published name
    return find_unet(f"{model}/unet")


def _whole_model(unet_folder: Path) -> str | None:
    """The pipeline's folder or the single file that a UNet is of; None for a UNet by itself."""
    if (unet_folder.parent / "vae" / "config.json").is_file():
        return str(unet_folder.parent)
    return str(unet_folder) if is_single_file(unet_folder) else None
