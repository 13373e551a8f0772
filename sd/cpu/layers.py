"""What makes the same layers faster on a CPU, where Paddle's own use one core and sum gradients element by element."""

import ctypes
import functools
import os
from pathlib import Path
from typing import Any

import paddle
from paddle import _C_ops, nn
from paddle.distributed.fleet.utils import recompute
from ppdiffusers.models.activations import GEGLU
from ppdiffusers.models.attention_processor import Attention, AttnProcessor
from ppdiffusers.models.resnet import Downsample2D, ResnetBlock2D
from ppdiffusers.models.transformer_2d import Transformer2DModel, Transformer2DModelOutput
from ppdiffusers.utils import recompute_use_reentrant, use_old_recompute

from sd.cpu import convolution, gates, norms, onednn, products
from sd.runtime import is_off

_Layer: Any = object  # a class that goes before a layer's own has its attributes and, behind itself, its forward


def speed_up(layer: Any, frozen: bool = False) -> None:
    """Let the layers in `layer` compute by sd.cpu, transposed tensors be copied at once (Paddle's views of them,
    made for GPUs, are copied by every operation that follows), and Paddle's own loops use as many threads as MKL.

    Weights, their names and, to rounding, the results stay. Only for what stays out of a static graph, which holds
    Paddle's operators alone. Measured by bench/training.py and bench/sampling.py.
    frozen: the weights seldom change, so convolutions and GEGLU keep a packed copy.
    `SD_RUNTIME=off` leaves the layers as they are.
    """
    if is_off(os.environ):
        return
    paddle.set_flags({"FLAGS_use_stride_kernel": False})
    use_threads_of_mkl()
    for sublayer in layer.sublayers(include_self=True):
        for layer_class, fits, faster in _FASTER:
            if isinstance(sublayer, layer_class) and fits(sublayer) and getattr(sublayer, "lora_layer", None) is None:
                sublayer.__class__ = _with(faster, type(sublayer))  # type: ignore[arg-type]
                if frozen and faster in (_FastConvolution, _FastGEGLU):
                    sublayer.__dict__["_packed"] = {}


def use_threads_of_mkl() -> None:
    """Give OpenMP the threads that MKL has from sd.runtime, unless the user has set OMP_NUM_THREADS to more than one.

    (Paddle reads that variable, and sets it, when it is imported, and complains of any number but 1.)
    """
    library = Path(paddle.sysconfig.get_lib()) / "libiomp5.so"
    if library.exists() and "MKL_NUM_THREADS" in os.environ and os.environ.get("OMP_NUM_THREADS", "1") == "1":
        ctypes.CDLL(str(library)).omp_set_num_threads(int(os.environ["MKL_NUM_THREADS"]))


@functools.cache
def _with(faster, layer_class):
    """layer_class with the forward of `faster`, which the state dict and isinstance do not notice."""
    if issubclass(layer_class, faster):
        return layer_class
    return type(layer_class.__name__, (_Float32OnCPU, faster, layer_class), {"_plain_class": layer_class})


class _Float32OnCPU(_Layer):
    """Float32 tensors on the CPU go to the faster forward, which reads their memory itself; all others to Paddle's."""

    def forward(self, x, *arguments, **options):
        if x.dtype == paddle.float32 and x.place.is_cpu_place():
            return super().forward(x, *arguments, **options)
        return self._plain_class.forward(self, x, *arguments, **options)


def _padding(convolution):
    sides = convolution._padding
    return (sides, sides) if isinstance(sides, int) else tuple(sides)


def _is_simple_convolution(layer):
    sides = _padding(layer)
    simple = len(sides) == 2 and all(isinstance(side, int) for side in sides) and layer._padding_mode == "zeros"
    return onednn.is_available() and simple and layer._data_format == "NCHW" and layer._groups == 1


def _is_affine(layer):
    if type(layer).forward not in (nn.LayerNorm.forward, nn.GroupNorm.forward):
        return False  # a norm of another kind
    rows = not isinstance(layer, nn.LayerNorm) or len(layer._normalized_shape) == 1
    channels = not isinstance(layer, nn.GroupNorm) or layer._data_format == "NCHW"
    return onednn.is_available() and rows and channels and layer.weight is not None and layer.bias is not None


class _FastLinear(_Layer):
    def forward(self, x, scale=None):
        if self.bias is None:  # Paddle's own product and its gradients, without what stands before them
            return _C_ops.matmul(x, self.weight, False, False)
        return products.linear(x, self.weight, self.bias)


class _FastConvolution(_Layer):
    def forward(self, x, scale=None):
        sides = _padding(self)
        geometry = self._stride, self._dilation, (sides, sides)
        if "_packed" in self.__dict__ and not paddle.is_grad_enabled():
            return convolution.convolution_packed(self._packed, x, self.weight, self.bias, *geometry)
        return convolution.convolution(x, self.weight, self.bias, *geometry)


def _pads_one_side(layer):
    """What the VAE does: a column of zeros on the right, a row below. Of its own, F.pad copies the whole picture."""
    return layer.use_conv and layer.padding == 0 and _is_simple_convolution(layer.conv)


class _FastDownsample(_Layer):
    def forward(self, hidden_states, scale=1.0):
        conv = self.conv
        one_side = ((0, 0), (1, 1))
        return convolution.convolution(hidden_states, conv.weight, conv.bias, conv._stride, conv._dilation, one_side)


class _FastLayerNorm(_Layer):
    def forward(self, x):
        return norms.layer_norm(x, self.weight, self.bias, self._epsilon)


class _FastGroupNorm(_Layer):
    def forward(self, x):
        return norms.group_norm(x, self.weight, self.bias, self._num_groups, self._epsilon)


def _is_plain_gate(layer):
    return onednn.is_available() and getattr(layer.proj, "lora_layer", None) is None


class _FastGEGLU(_Layer):
    def forward(self, hidden_states, scale=1.0):
        packed = None if paddle.is_grad_enabled() else self.__dict__.get("_packed")
        return gates.geglu(hidden_states, self.proj.weight, self.proj.bias, packed)


def _is_simple_block(layer):
    """Norm, SiLU and convolution, twice, with the time added in between."""
    simple = layer.upsample is None and layer.downsample is None and layer.time_embedding_norm == "default"
    silu = isinstance(layer.nonlinearity, nn.Silu) and not layer.skip_time_act
    return simple and silu and _is_affine(layer.norm1) and _is_affine(layer.norm2)


def _norm_and_silu(norm, x):
    return norms.group_norm(x, norm.weight, norm.bias, norm._num_groups, norm._epsilon, True)


class _FastResnetBlock(_Layer):
    def forward(self, input_tensor, temb, scale=1.0):
        if scale != 1.0:  # LoRA's
            return super().forward(input_tensor, temb, scale)
        hidden = self.conv1(_norm_and_silu(self.norm1, input_tensor))
        if self.time_emb_proj is not None:
            time = self.time_emb_proj(self.nonlinearity(temb)).expand([hidden.shape[0], -1])  # else its sum is slow
            hidden = hidden + time.unsqueeze([2, 3])
        hidden = self.conv2(self.dropout(_norm_and_silu(self.norm2, hidden)))
        shortcut = input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor)
        y = shortcut + hidden
        return y if self.output_scale_factor == 1.0 else y / self.output_scale_factor


def _is_plain_attention(layer):
    """As in a UNet's transformer: neither norms nor residuals of its own, nothing in float32 while the rest is not."""
    others = (layer.group_norm, layer.spatial_norm, layer.norm_cross, layer.added_kv_proj_dim, layer.context_pre_only)
    plain = all(other is None for other in others) and not (layer.upcast_attention or layer.upcast_softmax)
    return onednn.is_available() and plain and not layer.residual_connection and layer.rescale_output_factor == 1.0


class _FastAttention(_Layer):
    def forward(self, hidden_states, encoder_hidden_states=None, attention_mask=None, **options):
        supported = type(self.processor) is AttnProcessor and attention_mask is None and not options
        if not supported or hidden_states.ndim != 3:
            return super().forward(hidden_states, encoder_hidden_states, attention_mask, **options)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = self.to_q(hidden_states), self.to_k(context), self.to_v(context)
        projection, dropout = self.to_out
        return dropout(projection(products.attention(query, key, value, self.heads, self.scale)))


def _is_plain_transformer(layer):
    """Convolutions of 1 x 1 before and behind the blocks, as in Stable Diffusion 1."""
    simple = layer.is_input_continuous and not (layer.use_linear_projection or layer.inference_optimize)
    if not simple or layer.data_format != "NCHW" or layer.caption_projection is not None:
        return False
    ends = layer.proj_in, layer.proj_out
    return all(_is_simple_convolution(end) and getattr(end, "lora_layer", None) is None for end in ends)


class _FastTransformer(_Layer):
    """Its convolutions are matrix products with the tokens, which spares oneDNN's copies into its own layout."""

    def forward(self, hidden_states, encoder_hidden_states=None, return_dict=True, **options):
        if any(option is not None for option in options.values()):
            return super().forward(hidden_states, encoder_hidden_states, return_dict=return_dict, **options)
        tokens = self.norm(hidden_states).flatten(2).transpose([0, 2, 1])
        tokens = products.pointwise(tokens, self.proj_in.weight, self.proj_in.bias)
        again = self.gradient_checkpointing and not tokens.stop_gradient and not use_old_recompute()
        reentrant = {} if recompute_use_reentrant() else {"use_reentrant": False}
        for block in self.transformer_blocks:
            if again:
                tokens = recompute(block, tokens, None, encoder_hidden_states, **reentrant)
            else:
                tokens = block(tokens, None, encoder_hidden_states)
        tokens = products.pointwise(tokens, self.proj_out.weight, self.proj_out.bias)
        y = tokens.transpose([0, 2, 1]).reshape(hidden_states.shape) + hidden_states
        return Transformer2DModelOutput(sample=y) if return_dict else (y,)


_FASTER = (
    (nn.Linear, lambda layer: True, _FastLinear),
    (nn.Conv2D, _is_simple_convolution, _FastConvolution),
    (Downsample2D, _pads_one_side, _FastDownsample),
    (nn.LayerNorm, _is_affine, _FastLayerNorm),
    (nn.GroupNorm, _is_affine, _FastGroupNorm),
    (ResnetBlock2D, _is_simple_block, _FastResnetBlock),
    (Attention, _is_plain_attention, _FastAttention),
    (GEGLU, _is_plain_gate, _FastGEGLU),
    (Transformer2DModel, _is_plain_transformer, _FastTransformer),
)
