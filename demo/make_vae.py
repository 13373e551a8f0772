"""A small variational autoencoder of the shapes: 32 x 32 pixels to 4 x 4 latents and back."""

import numpy as np
import paddle
from PIL import Image
from ppdiffusers import AutoencoderKL
from tqdm import tqdm

from demo.descent import minimise
from demo.shapes import example
from sd.cpu.layers import speed_up
from sd.data.images.decode import Picture
from sd.data.streaming.sample import bucket_crop, random_crop

RESOLUTION = 32
CROPPED_FROM = int(RESOLUTION / 0.9)
LATENT_CHANNELS = 4
CHANNELS = (8, 16, 32, 64)
# Weight of the KL divergence of a whole image against the mean squared error of its values. Twice the channels with
# 3e-5 reconstruct as well, but most of them are noise then, and diffusion learns slower (tried: 24% against 72% right).
KL_WEIGHT = 2e-5
START_LOG_VARIANCE = -4.0


def training_pictures(count, seed, size=70):
    """`count` drawings, resized as the trainer does but not yet cropped: [count, 35, 35, 3] uint8."""
    pictures = np.empty((count, CROPPED_FROM, CROPPED_FROM, 3), np.uint8)
    for index in tqdm(range(count), desc="drawing", unit="picture"):
        drawing = Image.fromarray(example(index, seed, size)[0])
        pictures[index] = np.asarray(drawing.resize((CROPPED_FROM, CROPPED_FROM), Image.Resampling.LANCZOS))
    return pictures


def pictures_of_formats(count, seed, formats):
    """`count` drawings of several formats, (width, height) in turn, as the trainer cuts them: each whole as its bucket,
    and a random square of it as without buckets. {(width, height): uint8 [n, height, width, 3]}."""
    cuts = {size: [] for size in [*formats, (RESOLUTION, RESOLUTION)]}
    sizes = [(2 * width, 2 * height) for width, height in formats]
    for index in tqdm(range(count), desc="drawing", unit="picture"):
        drawing = Image.fromarray(example(index, seed, sizes)[0])
        picture, rng = Picture(drawing, drawing.size), np.random.default_rng((seed, index))
        bucket = drawing.width // 2, drawing.height // 2
        cuts[bucket].append(bucket_crop(picture, bucket, "lanczos", rng))
        cuts[RESOLUTION, RESOLUTION].append(random_crop(picture, RESOLUTION, "lanczos", rng))
    return {size: np.stack(pixels).transpose(0, 2, 3, 1) for size, pixels in cuts.items()}


def random_crops(pictures, rng, batch_size, size=(RESOLUTION, RESOLUTION)):
    """A batch of pictures, each cropped at random to `size`: [batch_size, 3, height, width] float32 in [-1, 1].

    pictures: uint8 [n, h, w, 3], as much higher as wider than `size`.
    """
    width, height = size
    margin = pictures.shape[1] - height + 1
    batch = np.empty((batch_size, height, width, 3), np.float32)
    for row, index in enumerate(rng.integers(0, len(pictures), batch_size)):
        top, left = rng.integers(0, margin, 2)
        batch[row] = pictures[index, top : top + height, left : left + width]
    return np.ascontiguousarray(batch.transpose(0, 3, 1, 2)) / 127.5 - 1


def build_vae(channels=CHANNELS, norm_num_groups=1, resolution=RESOLUTION):
    """The untrained autoencoder; few channels at full resolution, where Paddle's CPU convolutions are slow.

    It starts with little noise on the latents: at a deviation of one, the first hundreds of steps learn nothing.
    """
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=norm_num_groups,
        sample_size=resolution,
        force_upcast=False,
    )
    bias = vae.quant_conv.bias.numpy()
    bias[LATENT_CHANNELS:] = START_LOG_VARIANCE
    vae.quant_conv.bias.set_value(bias)
    return vae


def start_vae(seed, folder=None):
    """The autoencoder of a folder, computing by sd.cpu; without one a new one from `seed`, by Paddle's own layers."""
    paddle.seed(seed)
    if folder is None:
        vae = build_vae()
    else:
        vae = AutoencoderKL.from_pretrained(folder)
        speed_up(vae)
    return vae


def train_vae(vae, pictures, steps, batch_size, learning_rate, seed, kl_weight=KL_WEIGHT):
    """Train with AdamW and a cosine schedule; sets scaling_factor to one over the latents' standard deviation.

    pictures: {size of the crops: pictures as `random_crops` takes them}, of which batches are taken in turn.
    """
    rng = np.random.default_rng(seed)

    def loss_of(step):
        pixel_values = paddle.to_tensor(_batch(pictures, step, rng, batch_size))
        posterior = vae.encode(pixel_values).latent_dist
        error = vae.decode(posterior.sample()).sample - pixel_values
        squared, divergence = error.square().mean(), posterior.kl().mean()
        loss = squared + 0.1 * error.abs().mean() + kl_weight * divergence
        return loss, {"squared": squared, "kl": divergence}

    clip = paddle.nn.ClipGradByGlobalNorm(1.0)
    minimise(loss_of, vae.parameters(), learning_rate, steps, "VAE", weight_decay=1e-4, grad_clip=clip)
    vae.eval()
    vae.register_to_config(scaling_factor=1 / latent_std(vae, pictures, rng))
    return vae


def _batch(pictures, turn, rng, batch_size):
    size = list(pictures)[turn % len(pictures)]
    return random_crops(pictures[size], rng, batch_size, size)


@paddle.no_grad()
def latent_std(vae, pictures, rng, batches=16, batch_size=64):
    """Standard deviation of sampled latents over values and pictures, unscaled."""
    crops = [_batch(pictures, turn, rng, batch_size) for turn in range(batches)]
    latents = [vae.encode(paddle.to_tensor(crop)).latent_dist.sample().numpy() for crop in crops]
    return float(np.concatenate([values.ravel() for values in latents]).std())
