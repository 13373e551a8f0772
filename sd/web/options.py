"""What the web page's processes are given: the flags of app.py, and a request to draw."""

from dataclasses import dataclass
from typing import Any

from sd.errors import ArgumentError, InputError
from sd.flags.arguments import check_choice, check_range, check_ranges, refuse_empty
from sd.flags.models import ModelNames
from sd.flags.options import option
from sd.sampling.settings import check_prompt, check_settings

MAX_PICTURES, LARGEST_SIDE = 16, 2048
_WHOLE = ("num_inference_steps", "seed", "num_images", "height", "width")


@dataclass(frozen=True, kw_only=True)
class ServeOptions(ModelNames):
    """The flags of app.py."""

    output_dir: str | None = option(None, "a run's folder: its checkpoints can be chosen on the page", metavar="DIR")
    checkpoint: str | None = option(
        None,
        "instead: one checkpoint-N, pipeline folder or published name (default: CompVis/stable-diffusion-v1-4)",
        metavar="NAME",
    )
    output: str = option("app_output", "folder for the pictures", metavar="DIR")
    host: str = option("127.0.0.1", "address to listen at; 0.0.0.0 lets others in")
    port: int = option(7860, "port to listen at")
    dtype: str = option("fp32", "fp32 or, on a GPU, fp16 or bf16")
    device: str | None = option(None, "cpu, gpu or gpu:N (default: a GPU if there is one)")

    def __post_init__(self):
        refuse_empty(self)
        if self.output_dir and self.checkpoint:
            raise InputError("--output_dir with --checkpoint; give one of them")
        check_range("port", self.port, low=1, high=65535)


@dataclass
class Request:
    """Pictures to be drawn, by eval.py's names. model: a label of `Engine.choices`; weights: `raw` or `ema`.

    None leaves the last three to the model. Numbers come as a page's sliders give them; whole ones become int. Raises
    InputError for a wrong value.
    """

    model: str | None
    weights: str
    prompt: str
    negative_prompt: str
    guidance_scale: float
    num_inference_steps: int
    seed: int
    num_images: int
    height: int | None = None
    width: int | None = None
    scheduler: str | None = None
    dtype: str = "fp32"
    batch_size: int = 1  # each picture is shown as soon as it is drawn, and cancelling keeps it

    def __post_init__(self):
        if not self.prompt.strip():
            raise InputError("the prompt is empty; type what is to be drawn")
        for name in ("prompt", "negative_prompt"):
            check_prompt(name, getattr(self, name))
        for name in _WHOLE:
            value: Any = getattr(self, name)
            if value is None and name in ("height", "width"):
                continue
            if not isinstance(value, (int, float)) or value % 1:
                raise ArgumentError(name, value, "; expected a whole number")
            setattr(self, name, int(value))
        if not isinstance(self.guidance_scale, (int, float)):
            raise ArgumentError("guidance_scale", self.guidance_scale, "; expected a number")
        self.guidance_scale = float(self.guidance_scale)
        check_settings(self)
        check_choice("weights", self.weights, ("raw", "ema"))
        check_range("seed", self.seed, low=0)
        check_range("num_images", self.num_images, low=1, high=MAX_PICTURES)
        check_ranges(self, "height width", low=1, high=LARGEST_SIDE)
