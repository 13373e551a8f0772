"""The flags of eval.py that scoring reads, as the tests give them."""

from types import SimpleNamespace


def scoring_flags(clip, prompts_file, real, **changed):
    """Two DDIM steps on a CPU; clip: for all measures; real: the pictures to compare with."""
    defaults = {
        "prompts_file": str(prompts_file), "prompts_column": None, "num_prompts": None, "preset": None,
        "guidance_scales": [2.0], "guidance_scale": 7.5, "height": None, "width": None, "scheduler": None,
        "batch_size": None, "num_inference_steps": 2, "negative_prompt": "", "dtype": "fp32", "device": "cpu",
        "seed": 42, "processes": 1, "fid_model": clip, "fid_reference": str(real), "clip_model": clip,
        "cmmd_reference": str(real), "data_filter": None, "output": None,
    }  # fmt: skip
    return SimpleNamespace(**(defaults | changed))
