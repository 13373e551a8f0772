"""The flags of eval.py: what is drawn, from which models, and how it is scored; checked before any work starts."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sd.errors import ArgumentError, InputError
from sd.flags.arguments import check_choice, check_range, check_ranges, refuse_empty
from sd.flags.idle import Rule, refuse_idle
from sd.flags.models import ModelNames
from sd.flags.options import option
from sd.sampling.prompts import read_prompts
from sd.sampling.settings import check_guidance, check_prompt, check_settings

ASTRONAUT = "a photo of an astronaut riding a horse on mars"
# What a protocol fixes beside the defaults of 50 steps and seed 42; a flag that is given wins.
PRESETS: dict[str, dict[str, Any]] = {
    "mlperf": {"height": 512, "width": 512, "scheduler": "ddim", "guidance_scales": [8.0], "num_prompts": 30_000},
    "reference": {
        "height": 256,
        "width": 256,
        "scheduler": "ddim",
        "guidance_scales": [1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
    },
}
_OTHER_FORMATS = (".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")


@dataclass(frozen=True, kw_only=True)
class SampleOptions(ModelNames):
    """The flags of eval.py. Raises InputError for a value out of range and for flags that exclude each other."""

    prompt: list[str] | None = option(None, f"one or several prompts (default: {ASTRONAUT})", metavar="TEXT")
    prompts_file: str | None = option(None, "prompts from a text file (one a line), JSONL, TSV or CSV", metavar="FILE")
    prompts_column: str | None = option(
        None, "its key or column (default: prompt, caption_en, caption or text)", metavar="NAME"
    )
    negative_prompt: str = option("", "what guidance leads away from (default: nothing)", metavar="TEXT")
    compare: list[str] | None = option(
        None,
        "draw the same prompts and noise with each of these, as one grid: "
        "checkpoints, guidance scales, `ema` and `raw`, or `CHECKPOINT:ema`",
        metavar="WHAT",
    )
    output: str | None = option(
        None, "folder, or file.png for one picture or the grid (default: eval_output)", metavar="PATH"
    )

    unet: str | None = option(
        None,
        "output_dir/checkpoint-N/unet, output_dir/checkpoint-N, output_dir (its newest "
        "checkpoint) or a published name (default: the pretrained model's)",
        group="the UNet, its precision and device",
        names=("--unet_name_or_path",),
        metavar="NAME",
    )
    variant: str | None = option(
        None, "`ema` for the moving average of the UNet's weights (default: the weights themselves)"
    )
    dtype: str = option("fp32", "fp32 or, on a GPU, fp16 or bf16")
    device: str | None = option(None, "cpu, gpu or gpu:N (default: a GPU if there is one)")

    height: int | None = option(None, "pixels (default: as in training; 512 for v1-4)", group="drawing")
    width: int | None = option(None, "pixels (default: as in training; 512 for v1-4)")
    guidance_scale: float = option(7.5, "classifier-free guidance; 1 is none")
    num_inference_steps: int = option(50, "denoising steps")
    scheduler: str | None = option(
        None, "ddim, pndm, lms, euler, heun or dpm (default: ddim, or the published model's own)"
    )
    num_images: int = option(1, "pictures of each prompt")
    seed: int = option(42, "seed of each prompt's first picture; the next has seed + 1, and so on")
    batch_size: int | None = option(
        None, "pictures in one UNet call (default: 8 where the UNet's work is small, else 1)"
    )
    processes: int = option(1, "processes that draw, one for each GPU; on a CPU they share its cores")

    metrics: bool = option(
        False,
        "draw one picture of each prompt and measure FID and CLIP score",
        group="scores of a prompts file, with --metrics (default output: eval_metrics)",
    )
    preset: str | None = option(
        None,
        "mlperf (512 pixels, guidance 8, 30,000 prompts) or reference (256 pixels, guidance 1.5 to 8)",
    )
    guidance_scales: list[float] | None = option(None, "several (default: --guidance_scale)", metavar="SCALE")
    num_prompts: int | None = option(None, "the first so many prompts (default: all)")
    clip_model: str | None = option(None, "CLIP for the CLIP score: a folder or published name", metavar="NAME")
    fid_model: str | None = option(
        None, "features for FID: Inception-v3's weights (.pth, .safetensors), or a CLIP", metavar="NAME"
    )
    data_filter: str | None = option(
        None, "rows of the list of --fid_reference or --cmmd_reference, by their columns", metavar="EXPRESSION"
    )
    fid_reference: str | None = option(
        None, "real pictures: a folder, a file list, or statistics (.npz: mu, sigma)", metavar="PATH"
    )
    cmmd_reference: str | None = option(
        None,
        "real pictures for CMMD, by the features of --clip_model: a folder, a file list, or .npz: features",
        metavar="PATH",
    )
    watch: str | None = option(
        None,
        "score each new checkpoint of a run, raw and ema, until its last one",
        group="watch a run, with the flags of scores (default output: OUTPUT_DIR/scores)",
        metavar="OUTPUT_DIR",
    )
    every: int = option(1, "those of every N-th step, and the last (default: all)", metavar="N")
    golden: str | None = option(
        None, "band of a sound run behind the curves: mlperf_sd2, or a .json file", metavar="NAME"
    )
    poll_seconds: float = option(30.0, "seconds between two looks (default: %(default)g)")

    def __post_init__(self):
        refuse_empty(self, allowed="negative_prompt")
        refuse_idle(self, self._idle_rules())
        check_ranges(self, "num_images height width batch_size num_prompts processes every", low=1)
        check_range("seed", self.seed, low=0)
        for name, prompt in [
            *(("prompt", each) for each in self.prompt or ()),
            ("negative_prompt", self.negative_prompt),
        ]:
            check_prompt(name, prompt)
        check_settings(self)
        for scale in self.scales:
            check_guidance("guidance_scales", scale)
        check_range("poll_seconds", self.poll_seconds, above=0)
        if self.preset is not None:
            check_choice("preset", self.preset, PRESETS)
        if (self.metrics or self.watch) and self.compare:
            raise InputError("--compare with --metrics or --watch; measure the checkpoints one after another")
        if self.watch and (self.unet or self.variant):
            raise InputError("--watch with --unet or --variant; it takes the checkpoints of its run, raw and ema")
        if self.output and Path(self.output).suffix.lower() in _OTHER_FORMATS:
            raise ArgumentError("output", self.output, "; pictures are written as PNG: name a file.png, or a folder")
        if self.compare and len(self.compare) < 2:
            raise ArgumentError("compare", self.compare[0], "; expected two or more to be compared")
        if self.metrics or self.watch:
            self._check_scores()

    def _idle_rules(self) -> list[Rule]:
        """Which flags have an effect beside which others."""
        scores = bool(self.metrics or self.watch)
        measures = "preset guidance_scales num_prompts clip_model fid_model fid_reference data_filter cmmd_reference"
        drawing = "with --metrics or --watch, which draw one picture of each of --prompts_file"
        guided = bool(self.compare or self.preset) or self.scales != [1]
        return [
            (scores, measures, "without --metrics or --watch"),
            (bool(self.watch), "every golden poll_seconds", "without --watch OUTPUT_DIR"),
            (not scores, "prompt num_images", drawing),
            (bool(self.prompts_file), "prompts_column", "without --prompts_file"),
            (not self.guidance_scales, "guidance_scale", "with --guidance_scales"),
            (not self.preset, "guidance_scale", "with --preset; --guidance_scales takes the place of the preset's"),
            (guided, "negative_prompt", "at guidance 1, which has no negative"),
        ]

    def _check_scores(self):
        if not self.prompts_file:
            raise InputError("no --prompts_file; name a TSV, CSV, JSONL or text file of prompts")
        if bool(self.fid_model) != bool(self.fid_reference):
            raise InputError("--fid_model and --fid_reference go together: features, and what they are compared with")
        if self.data_filter is not None and not (self.fid_reference or self.cmmd_reference):
            raise InputError(
                "--data_filter chooses rows of the file list of --fid_reference or --cmmd_reference; name one"
            )
        if not self.fid_model and not self.clip_model:
            raise InputError("no measure; name --clip_model, or --fid_model and --fid_reference")
        if self.cmmd_reference and not self.clip_model:
            raise InputError("--cmmd_reference without --clip_model; CMMD compares CLIP features")

    @property
    def scales(self) -> list[float]:
        """The guidance scales that are scored."""
        return self.guidance_scales or [self.guidance_scale]

    def read_prompts(self) -> list[str]:
        """The prompts of the command line, then those of the file. Raises InputError for one that cannot be read."""
        prompts = list(self.prompt or [])
        if self.prompts_file:
            prompts += read_prompts(self.prompts_file, self.prompts_column, self.num_prompts)
        return prompts

    def with_preset(self) -> "SampleOptions":
        """With what the preset fixes and the user left open."""
        fixed = PRESETS[self.preset] if self.preset else {}
        return replace(self, **{name: value for name, value in fixed.items() if getattr(self, name) is None})
