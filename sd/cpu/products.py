"""Matrix products with their gradients: linear layers by Paddle's MKL, attention by oneDNN."""

import functools

from paddle import Tensor, _C_ops
from paddle.autograd import PyLayer

from sd.cpu import onednn as dnn
from sd.cpu.onednn import Primitive, empty, engine, plain, strided
from sd.cpu.operation import apply, needed_gradients, ones, pop_saved


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x: [...,C]; weight: [C,O]; bias: [O]. The bias is added, and its gradient summed, by a matrix product."""
    return apply(_Linear, x, weight, bias, False)


def pointwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As `linear`, by the weights of a convolution: [O,C,1,1]."""
    return apply(_Linear, x, weight, bias, True)


def attention(query: Tensor, key: Tensor, value: Tensor, heads: int, scale: float) -> Tensor:
    """softmax(scale * query @ key^T) @ value for each head (https://arxiv.org/abs/1706.03762, 3.2).

    query: [B,N,heads*D]; key, value: [B,M,heads*D]. Returns [B,N,heads*D].
    """
    return apply(_Attention, query, key, value, heads, scale)


class _Linear(PyLayer):
    @staticmethod
    def forward(ctx, x, weight, bias, turned):
        ctx.saved, ctx.turned = (x, weight, bias), turned
        if turned:
            return _C_ops.add(_C_ops.matmul(x, _matrix(weight), False, True), bias)
        y = _C_ops.addmm(bias, _C_ops.reshape(x, [-1, x.shape[-1]]), weight, 1.0, 1.0)
        return _C_ops.reshape(y, [*x.shape[:-1], weight.shape[1]])

    @staticmethod
    def backward(ctx, y_grad):
        return linear_gradients(pop_saved(ctx), y_grad, ctx.turned)


def _matrix(weight):
    """[O,C,1,1] -> [O,C]."""
    return _C_ops.reshape(weight, weight.shape[:2])


def linear_gradients(inputs: tuple[Tensor, Tensor, Tensor], y_grad: Tensor, turned: bool = False) -> tuple:
    """Those of `linear`'s x, weight and bias, or `pointwise`'s, from that of its result; None for each without one."""
    x, weight, bias = inputs
    x_grad = weight_grad = bias_grad = None
    if not x.stop_gradient:
        x_grad = _C_ops.matmul(y_grad, _matrix(weight) if turned else weight, False, not turned)
    y_grad = _C_ops.reshape(y_grad, [-1, y_grad.shape[-1]])
    if not weight.stop_gradient:
        sides = _C_ops.reshape(x, [-1, x.shape[-1]]), y_grad
        weight_grad = _C_ops.matmul(*(sides[::-1] if turned else sides), True, False)
        weight_grad = _C_ops.reshape(weight_grad, weight.shape) if turned else weight_grad
    if not bias.stop_gradient:
        bias_grad = _C_ops.matmul(ones(y_grad.shape[0]), y_grad, False, False)
    return x_grad, weight_grad, bias_grad


def _product(left, right, result):
    descriptor = dnn.new("matmul_primitive_desc", engine(), left, right, None, result, None)
    return Primitive(descriptor, {dnn.SRC: left, dnn.WEIGHTS: right, dnn.DST: result}, {dnn.DST})


@functools.cache
def _attention_calls(batch, queries, keys, heads, width):
    """(query @ key^T, softmax, share @ key, share^T @ query); the heads are read where they lie, side by side."""

    def by_head(rows):
        return strided((batch, heads, rows, width), (rows * heads * width, width, heads * width, 1))

    query, key, share = by_head(queries), by_head(keys), plain(batch, heads, queries, keys)
    key_turned = strided((batch, heads, width, keys), (keys * heads * width, width, 1, heads * width))
    share_turned = strided((batch, heads, keys, queries), (heads * queries * keys, queries * keys, 1, keys))
    softmax = dnn.new("softmax_forward_primitive_desc", engine(), dnn.FORWARD, dnn.SOFTMAX, share, share, 3, None)
    return (
        _product(query, key_turned, share),
        Primitive(softmax, {dnn.SRC: share, dnn.DST: share}, {dnn.DST}),
        _product(share, key, query),
        _product(share_turned, query, key),
    )


class _Attention(PyLayer):
    @staticmethod
    def forward(ctx, query, key, value, heads, scale):
        inputs = query, key, value
        query, key, value = (tensor.contiguous() for tensor in inputs)
        (batch, queries, channels), keys = query.shape, key.shape[1]
        ctx.calls = compare, softmax, gather, _ = _attention_calls(batch, queries, keys, heads, channels // heads)
        query = _C_ops.scale(query, scale, 0.0, True)
        share, y = empty([batch, heads, queries, keys]), empty(query.shape)
        compare({dnn.SRC: query, dnn.WEIGHTS: key, dnn.DST: share})
        softmax({dnn.SRC: share, dnn.DST: share})
        gather({dnn.SRC: share, dnn.WEIGHTS: value, dnn.DST: y})
        ctx.saved, ctx.scale = (inputs, query, key, value, share), scale
        return y

    @staticmethod
    def backward(ctx, y_grad):
        inputs, query, key, value, share = pop_saved(ctx)
        compare, _, gather, gather_turned = ctx.calls
        y_grad = y_grad.contiguous()
        query_grad, key_grad, value_grad = gradients = [empty(tensor.shape) for tensor in inputs]
        share_grad = empty(share.shape)
        gather_turned({dnn.SRC: share, dnn.WEIGHTS: y_grad, dnn.DST: value_grad})
        compare({dnn.SRC: y_grad, dnn.WEIGHTS: value, dnn.DST: share_grad})
        score_grad = _C_ops.softmax_grad(share, share_grad, -1)  # oneDNN's takes ten times as long on AVX2
        gather({dnn.SRC: score_grad, dnn.WEIGHTS: key, dnn.DST: query_grad})
        gather_turned({dnn.SRC: score_grad, dnn.WEIGHTS: query, dnn.DST: key_grad})
        gradients[0] = _C_ops.scale(query_grad, ctx.scale, 0.0, True)
        return needed_gradients(gradients, inputs)
