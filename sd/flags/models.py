"""The flags of several scripts that name the models beside the UNet."""

from dataclasses import dataclass
from typing import Any

from sd.flags.options import option


@dataclass(frozen=True, kw_only=True)
class ModelNames:
    """Models by name or folder, as `sd.sampling.sources.find_sources` takes them."""

    pretrained_model: str | None = option(
        None,
        "folder or published name of what is not named below "
        "(default: what the checkpoint's run used, else CompVis/stable-diffusion-v1-4)",
        group="models beside the UNet, by short flags or by those of training",
        names=("--pretrained_model_name_or_path",),
        metavar="NAME",
    )
    text_encoder: str | None = option(
        None,
        "the text encoder alone (default: the checkpoint's, if it was trained)",
        names=("--text_encoder_name_or_path",),
        metavar="NAME",
    )
    vae: str | None = option(None, "the VAE alone", names=("--vae_name_or_path",), metavar="NAME")
    tokenizer: str | None = option(None, "the tokenizer alone", names=("--tokenizer_name",), metavar="NAME")

    @property
    def models(self) -> dict[str, Any]:
        """The keyword arguments of `find_sources`."""
        return {name: getattr(self, name) for name in ModelNames.__dataclass_fields__}
