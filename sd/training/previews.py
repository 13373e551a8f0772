"""The pictures logged while training: the same captions and seeds every time, so that they can be compared."""

import logging

import numpy as np

from sd.diffusion.schedule import sampler_config
from sd.sampling.grid import labelled_sheet
from sd.sampling.pipeline import draw_images, make_scheduler, reconstruct, reconstruct_cached

logger = logging.getLogger(__name__)

COUNT = 4
GUIDANCE_SCALES = (1.0, 7.5)


class Previews:
    """records: a batch of the same records each time, with `pixel_values` uint8 [N,3,H,W] or cached `moments`
    [N,2C,h,w]; captions: their N texts; prompts: the user's own, if any."""

    def __init__(self, records, captions, prompts=(), resolution=512, num_inference_steps=50):
        self.records, self.captions, self.prompts = records, captions, list(prompts)
        self.resolution, self.num_inference_steps = resolution, num_inference_steps
        self.latest = {}  # name -> sheet of the last drawing

    def draw(self, model):
        """Yield (name, labelled sheet as PIL image) of each group."""
        for name, sheet in self._draw(model):
            self.latest[name] = sheet
            yield name, sheet

    def _draw(self, model):
        if self.captions:
            yield "reconstruction", self._reconstruction(model.vae)
            for scale in GUIDANCE_SCALES:
                yield f"ddim-samples-{scale}", self._samples(model, self.captions, scale)
        if self.prompts:
            yield "validation", self._samples(model, self.prompts, GUIDANCE_SCALES[-1])

    def _reconstruction(self, vae):
        """The records' pictures above what the VAE keeps of them; of cached ones the latter alone."""
        kept = ["as the VAE keeps it" for _ in self.captions]
        if "moments" in self.records:
            pictures, captions = reconstruct_cached(vae, self.records["moments"]), kept
        else:
            pixels = self.records["pixel_values"]
            pictures = np.concatenate([pixels.transpose(0, 2, 3, 1), reconstruct(vae, pixels)])
            captions = [*self.captions, *kept]
        return labelled_sheet(pictures, captions, columns=len(kept))

    def _samples(self, model, prompts, guidance_scale):
        args = model.model_args
        images = draw_images(
            model.unet,
            model.vae,
            model.text_encoder,
            model.tokenizer,
            prompts,
            seeds=range(len(prompts)),
            height=self.resolution,
            width=self.resolution,
            scheduler=make_scheduler("ddim", **sampler_config(args.prediction_type, args.rescale_betas_zero_snr)),
            guidance_scale=guidance_scale,
            num_inference_steps=self.num_inference_steps,
        )
        return labelled_sheet(images, prompts, title=f"guidance scale {guidance_scale}")
