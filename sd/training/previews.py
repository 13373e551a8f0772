"""The pictures logged while training: the same captions and seeds every time, so that they can be compared."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from sd.diffusion.schedule import sampler_config
from sd.errors import RunError
from sd.sampling.grid import labelled_sheet
from sd.sampling.pipeline import Networks, draw_images, make_scheduler, reconstruct, reconstruct_cached

logger = logging.getLogger(__name__)

COUNT = 4
GUIDANCE_SCALES = (1.0, 7.5)


class Previews:
    """records: batches of one record each, the same each time, with `pixel_values` uint8 [1,3,H,W] or cached `moments`
    [1,2C,h,w]; captions: their N texts; prompts: the user's own, if any; sizes: (width, height) at which each caption
    is drawn, its record's; prompt_sizes: those at which each prompt is."""

    def __init__(
        self,
        records: Any,
        captions: Sequence[str],
        prompts: Sequence[str] = (),
        *,
        sizes: Any,
        prompt_sizes: Any,
        num_inference_steps: int = 50,
    ):
        self.records, self.captions, self.prompts = records, captions, list(prompts)
        self.sizes, self.prompt_sizes, self.num_inference_steps = list(sizes), list(prompt_sizes), num_inference_steps
        self.latest = {}  # name -> sheet of the last drawing

    def draw(self, model: Any) -> Iterator[tuple[str, Any]]:
        """Yield (name, labelled sheet as PIL image) of each group; one that cannot be drawn costs a warning, not the
        run."""
        for name, make, *arguments in self._groups(model):
            try:
                sheet = make(*arguments)
            except RunError as error:
                logger.warning("%s was not drawn: %s", name, error)
                continue
            self.latest[name] = sheet
            yield name, sheet

    def _groups(self, model):
        """(name, what makes the sheet, its arguments)"""
        if self.captions:
            yield "reconstruction", self._reconstruction, model.vae
            for scale in GUIDANCE_SCALES:
                yield f"ddim-samples-{scale}", self._samples, model, self.captions, self.sizes, scale
        if self.prompts:
            prompts = [prompt for prompt in self.prompts for _ in self.prompt_sizes]
            sizes, scale = self.prompt_sizes * len(self.prompts), GUIDANCE_SCALES[-1]
            yield "validation", self._samples, model, prompts, sizes, scale, len(self.prompt_sizes)

    def _reconstruction(self, vae):
        """The records' pictures above what the VAE keeps of them; of cached ones the latter alone."""
        vae_captions = ["as the VAE keeps it" for _ in self.captions]
        if "moments" in self.records[0]:
            pictures = [reconstruct_cached(vae, record["moments"])[0] for record in self.records]
            captions = vae_captions
        else:
            pixels = [record["pixel_values"] for record in self.records]
            pictures = [each[0].transpose(1, 2, 0) for each in pixels] + [reconstruct(vae, each)[0] for each in pixels]
            captions = [*self.captions, *vae_captions]
        return labelled_sheet(pictures, captions, columns=len(vae_captions))

    def _samples(self, model, prompts, sizes, guidance_scale, per_prompt=1):
        """A sheet of the prompts, each at its size. per_prompt: sizes of a prompt, which share its seed and a row."""
        args = model.model_args
        images = {}
        for size in dict.fromkeys(sizes):
            indices = [index for index, other in enumerate(sizes) if other == size]
            drawn = draw_images(
                Networks(model.unet, model.vae, model.text_encoder, model.tokenizer),
                [prompts[index] for index in indices],
                seeds=[index // per_prompt for index in indices],
                height=size[1],
                width=size[0],
                scheduler=make_scheduler("ddim", **sampler_config(args.prediction_type, args.rescale_betas_zero_snr)),
                guidance_scale=guidance_scale,
                num_inference_steps=self.num_inference_steps,
            )
            for index, image in zip(indices, drawn, strict=True):
                images[index] = image
        columns = per_prompt if per_prompt > 1 else None
        in_order = [images[place] for place in range(len(prompts))]
        return labelled_sheet(in_order, prompts, title=f"guidance scale {guidance_scale}", columns=columns)
