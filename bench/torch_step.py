"""The same training step in PyTorch with Hugging Face diffusers and in Paddle, on equal weights and equal draws.

    sh bench/torch_env.sh bench/torch_step.py --write tests/fixtures/torch_step.json

records what PyTorch computes; tests/test_torch_step.py holds Paddle to it. Weights and inputs come from NumPy
generators seeded by their names, so neither has to be stored. A tensor is recorded by its norm and by its sums under
random signs: the expected square of such a sum's error is the squared norm of the tensor's error.
"""

import argparse
import json
import zlib
from pathlib import Path

import numpy as np

NUM_SIGNS = 3
NUM_STEPS = 10
ADAMW = {"lr": 1e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
UNET_CONFIG = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [32, 64],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 2,
    "norm_num_groups": 8,
    "attention_head_dim": 4,
    "cross_attention_dim": 16,
}
CASES = {
    "epsilon": {},
    "epsilon min-SNR": {"snr_gamma": 5.0},
    "v_prediction": {"prediction_type": "v_prediction"},
    "v_prediction min-SNR": {"prediction_type": "v_prediction", "snr_gamma": 5.0},
    "v_prediction zero SNR": {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    "noise offset, input perturbation": {"noise_offset": 0.1, "input_perturbation": 0.1},
}
DEFAULTS = {
    "prediction_type": "epsilon",
    "snr_gamma": None,
    "rescale_betas_zero_snr": False,
    "noise_offset": 0.0,
    "input_perturbation": 0.0,
}


def generator(name):
    """A generator that depends on nothing but the name."""
    return np.random.default_rng(zlib.crc32(name.encode()))


def make_weight(name, shape):
    """A UNet weight in PyTorch's layout: float32, of about the size that training starts from."""
    values = generator(name).standard_normal(shape)
    if len(shape) > 1:
        return (values / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
    return (values * 0.1 + (1.0 if "norm" in name and name.endswith("weight") else 0.0)).astype(np.float32)


def make_batch(step):
    """The draws of one step as the data workers make them, the latents and the text states; four samples."""
    rng = generator(f"batch {step}")
    shape = (4, 4, 16, 16)
    return {
        "latents": rng.standard_normal(shape, dtype=np.float32),
        "text_states": rng.standard_normal((4, 20, 16), dtype=np.float32),
        "noise": rng.standard_normal(shape, dtype=np.float32),
        "perturbation_noise": rng.standard_normal(shape, dtype=np.float32),
        "offset_noise": rng.standard_normal((4, 4, 1, 1), dtype=np.float32),
        "timestep": np.array([3, 140, 600, 999]) if step == 0 else rng.integers(0, 1000, 4),
    }


def fingerprint(name, tensor):
    """[norm, sum under random signs, ...] of one tensor in PyTorch's layout."""
    flat = tensor.astype(np.float64).reshape(-1)
    signs = generator(f"signs of {name}").integers(0, 2, (NUM_SIGNS, flat.size)) * 2 - 1
    return [float(np.linalg.norm(flat)), *(float(value) for value in signs @ flat)]


def torch_loss(unet, case, batch):
    """The loss as in diffusers' training script for text-to-image, on diffusers' own scheduler."""
    import torch
    import torch.nn.functional as F
    from diffusers import DDPMScheduler
    from diffusers.training_utils import compute_snr

    scheduler = DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=case["prediction_type"],
        rescale_betas_zero_snr=case["rescale_betas_zero_snr"],
    )
    tensors = {name: torch.from_numpy(value) for name, value in batch.items()}
    latents, noise, timesteps = tensors["latents"], tensors["noise"], tensors["timestep"]
    if case["noise_offset"]:
        noise = noise + case["noise_offset"] * tensors["offset_noise"]
    input_noise = noise
    if case["input_perturbation"]:
        input_noise = noise + case["input_perturbation"] * tensors["perturbation_noise"]
    noisy_latents = scheduler.add_noise(latents, input_noise, timesteps)
    v_prediction = case["prediction_type"] == "v_prediction"
    target = scheduler.get_velocity(latents, noise, timesteps) if v_prediction else noise
    prediction = unet(noisy_latents, timesteps, tensors["text_states"], return_dict=False)[0]
    if case["snr_gamma"] is None:
        return F.mse_loss(prediction, target)
    snr = compute_snr(scheduler, timesteps)
    weight = snr.clamp(max=case["snr_gamma"]) / (snr + 1 if v_prediction else snr)
    return (F.mse_loss(prediction, target, reduction="none").mean(dim=(1, 2, 3)) * weight).mean()


def torch_unet():
    """The UNet with its weights made by name."""
    import torch
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(**UNET_CONFIG)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            parameter.copy_(torch.from_numpy(make_weight(name, tuple(parameter.shape))))
    return unet.train()


def record():
    """Losses and gradients of every case, and the weights after ten AdamW steps of the first."""
    import diffusers
    import torch

    torch.use_deterministic_algorithms(True)
    recorded = {"versions": {"torch": torch.__version__, "diffusers": diffusers.__version__}, "cases": {}}
    for name, flags in CASES.items():
        unet = torch_unet()
        loss = torch_loss(unet, DEFAULTS | flags, make_batch(0))
        loss.backward()
        recorded["cases"][name] = {
            "loss": loss.item(),
            "gradients": {n: fingerprint(n, p.grad.numpy()) for n, p in unet.named_parameters()},
        }
    unet, losses = torch_unet(), []
    optimizer = torch.optim.AdamW(unet.parameters(), **ADAMW)
    for step in range(NUM_STEPS):
        loss = torch_loss(unet, DEFAULTS, make_batch(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    weights = {name: fingerprint(name, p.detach().numpy()) for name, p in unet.named_parameters()}
    recorded["after_steps"] = {"losses": losses, "weights": weights}
    return recorded


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", metavar="FILE", help="where to put the recorded numbers (default: the terminal)")
    args = parser.parse_args()
    rounded = json.loads(json.dumps(record()), parse_float=lambda text: float(f"{float(text):.9g}"))
    text = json.dumps(rounded, separators=(",", ":")).replace('"gradients"', '\n"gradients"') + "\n"
    if args.write:
        Path(args.write).parent.mkdir(parents=True, exist_ok=True)
        Path(args.write).write_text(text, encoding="utf-8")
        print(f"wrote {args.write}, {len(text)} bytes")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
