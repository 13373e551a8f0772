"""The flags of eval.py that scoring reads, as the tests give them."""

from sd.sampling.options import SampleOptions


def scoring_flags(clip, prompts_file, real, /, **changed):
    """Two DDIM steps on a CPU; clip: for all measures; real: the pictures to compare with."""
    defaults = {
        "prompts_file": str(prompts_file), "guidance_scales": [2.0], "num_inference_steps": 2, "device": "cpu",
        "fid_model": clip, "fid_reference": str(real), "clip_model": clip, "cmmd_reference": str(real),
    }  # fmt: skip
    return SampleOptions(**(defaults | changed))
