"""Operations for a CPU against Paddle's own in float64: results and every gradient, over shapes and options."""

import math
import weakref

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from sd.cpu import convolution, gates, norms, onednn, products
from tests.numeric import assert_close

needs_onednn = pytest.mark.skipif(not onednn.is_available(), reason="this Paddle has no oneDNN beside it")


def run(operation, tensors, weight):
    """The result and the gradient of each tensor (None where it takes none), for a loss that weighs every number."""
    y = operation(*tensors)
    (y * weight).sum().backward()
    actual = [y.numpy(), *(None if tensor.grad is None else tensor.grad.numpy() for tensor in tensors)]
    for tensor in tensors:
        tensor.clear_gradient(False)
    return actual


def check(ours, theirs, shapes, terms, frozen=(), scale=1.0):
    """Our operation in float32 against Paddle's in float64, on random tensors of these shapes, the first times `scale`.

    terms: of the sums that a number goes through on its way. Tensors at the numbers `frozen` take no gradient from
    ours. Theirs always gives all: Paddle's layer_norm gives a wrong gradient of x on a CPU where the weight takes none.
    """
    paddle.seed(3)
    arrays = [paddle.randn(shape).numpy() for shape in shapes]
    arrays[0] *= np.float32(scale)
    exact = [paddle.to_tensor(array.astype("float64"), stop_gradient=False) for array in arrays]
    weight = paddle.randn(theirs(*exact).shape)
    reference = run(theirs, exact, weight.astype("float64"))
    tensors = [paddle.to_tensor(array, stop_gradient=number in frozen) for number, array in enumerate(arrays)]
    for number, (actual, expected) in enumerate(zip(run(ours, tensors, weight), reference, strict=True)):
        if number - 1 in frozen:
            assert actual is None
        else:
            assert_close(actual, expected, terms, f"gradient {number - 1}" if number else "the result")


CONVOLUTIONS = [
    ([2, 3, 8, 6], [5, 3, 3, 3], (1, 1), (1, 1), ((1, 1), (1, 1))),
    ([1, 4, 9, 9], [6, 4, 3, 3], (2, 2), (1, 1), ((0, 0), (1, 1))),
    ([2, 4, 9, 8], [6, 4, 3, 2], (2, 1), (2, 1), ((2, 0), (2, 0))),
    ([3, 16, 4, 4], [8, 16, 1, 1], (1, 1), (1, 1), ((0, 0), (0, 0))),
    ([1, 1, 5, 5], [3, 1, 5, 5], (1, 1), (1, 1), ((2, 2), (2, 2))),
]


def convolution_terms(x, weight):
    """Of the longest of its sums: over a channel in or out and the window, or over the batch and the places."""
    return max(max(weight[:2]) * weight[2] * weight[3], x[0] * x[2] * x[3])


def paddles_convolution(stride, dilation, padding):
    (top, left), (bottom, right) = padding

    return lambda x, weight, bias=None: F.conv2d(
        F.pad(x, [left, right, top, bottom]), weight, bias, stride, 0, dilation
    )


@needs_onednn
@pytest.mark.parametrize(
    ("has_bias", "frozen"), [(True, ()), (True, (0,)), (True, (1,)), (True, (1, 2)), (True, (2,)), (False, ())]
)
@pytest.mark.parametrize(("x", "weight", "stride", "dilation", "padding"), CONVOLUTIONS)
def test_convolution_equals_paddles_in_float64(x, weight, stride, dilation, padding, has_bias, frozen):
    theirs = paddles_convolution(stride, dilation, padding)

    def ours(x, weight, bias=None):
        return convolution.convolution(x, weight, bias, stride, dilation, padding)

    shapes = [x, weight, weight[:1]] if has_bias else [x, weight]
    check(ours, theirs, shapes, convolution_terms(x, weight), frozen)


@pytest.mark.parametrize("frozen", [(), (0,), (1,), (2,)])
@pytest.mark.parametrize("shape", [[4, 7, 6], [3, 6], [2, 2, 3, 6]])
def test_linear_equals_paddles_in_float64(shape, frozen):
    check(products.linear, F.linear, [shape, [6, 5], [5]], max(6, math.prod(shape[:-1])), frozen)


SMALL = 1e-3  # numbers whose variance is below the epsilon of a norm, so that this decides the result


@needs_onednn
@pytest.mark.parametrize("frozen", [(), (0,), (1,), (2,)])
@pytest.mark.parametrize(("shape", "scale"), [([4, 7, 20], 1.0), ([3, 20], 1.0), ([3, 20], SMALL)])
def test_layer_norm_equals_paddles_in_float64(shape, scale, frozen):
    theirs = lambda x, weight, bias: F.layer_norm(x, [20], weight, bias, 1e-5)  # noqa: E731
    terms = 20 + 20 + math.prod(shape[:-1])  # mean and variance; a gradient of scale and shift, over the rows
    check(lambda *t: norms.layer_norm(*t, 1e-5), theirs, [shape, [20], [20]], terms, frozen, scale)


def group_norm_terms(shape, groups):
    """Mean and variance of a group, then a channel's gradients over the batch and the places."""
    return 2 * math.prod(shape[1:]) // groups + shape[0] * math.prod(shape[2:])


@needs_onednn
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("frozen", [(), (0,), (1,), (2,), (1, 2)])
@pytest.mark.parametrize(
    ("shape", "groups", "scale"),
    [
        ([2, 12, 5, 3], 4, 1.0),
        ([3, 8, 4, 4], 8, 1.0),
        ([1, 6, 2, 2], 1, 1.0),
        ([2, 8, 10], 2, 1.0),
        ([2, 12, 5, 3], 4, SMALL),
    ],
)
def test_group_norm_and_silu_equal_paddles_in_float64(shape, groups, scale, frozen, silu):
    def theirs(x, weight, bias):
        y = F.group_norm(x, groups, 1e-6, weight, bias)
        return F.silu(y) if silu else y

    shapes, terms = [shape, shape[1:2], shape[1:2]], group_norm_terms(shape, groups)
    check(lambda *t: norms.group_norm(*t, groups, 1e-6, silu), theirs, shapes, terms, frozen, scale)


def paddles_attention(heads, scale):
    """By the definition: the heads apart, one product after another."""

    def apart(x):
        return x.reshape([x.shape[0], x.shape[1], heads, -1]).transpose([0, 2, 1, 3])

    def attention(query, key, value):
        shares = F.softmax(paddle.matmul(apart(query), apart(key), transpose_y=True) * scale, axis=-1)
        return paddle.matmul(shares, apart(value)).transpose([0, 2, 1, 3]).reshape(query.shape)

    return attention


@needs_onednn
@pytest.mark.parametrize("frozen", [(), (0,), (1,), (2,), (1, 2)])
@pytest.mark.parametrize(
    ("batch", "queries", "keys", "heads", "width", "scale"),
    [(3, 5, 7, 2, 6, 0.4), (2, 16, 16, 4, 8, 8**-0.5), (1, 1, 3, 1, 5, 0.6), (1, 40, 77, 8, 40, 40**-0.5)],
)
def test_attention_equals_paddles_in_float64(batch, queries, keys, heads, width, scale, frozen):
    shapes = [[batch, queries, heads * width], *([batch, keys, heads * width],) * 2]
    # Scores, the softmax, its share of the values; back through the values, the softmax and the other side of scores.
    terms = 2 * (width + 2 * max(queries, keys))
    check(lambda *t: products.attention(*t, heads, scale), paddles_attention(heads, scale), shapes, terms, frozen)


@needs_onednn
def test_attention_to_far_apart_scores_has_no_overflow():
    query = paddle.full([1, 1, 4], 1e4)
    key = paddle.to_tensor([[[1e4] * 4, [-1e4] * 4]])
    value = paddle.to_tensor([[[1.0] * 4, [2.0] * 4]])
    assert products.attention(query, key, value, 1, 1.0).tolist() == [[[1.0] * 4]]


def paddles_geglu(x, weight, bias):
    straight, gate = F.linear(x, weight, bias).chunk(2, axis=-1)
    return straight * F.gelu(gate)


@needs_onednn
@pytest.mark.parametrize("frozen", [(), (0,), (1,), (2,), (1, 2)])
@pytest.mark.parametrize(("shape", "width"), [([2, 5, 12], 7), ([7, 2], 1), ([1, 3, 4, 64], 40)])
def test_geglu_equals_paddles_in_float64(shape, width, frozen):
    # The linear layer over the channels, two products and an error function; back over both halves, or the rows.
    terms = shape[-1] + 16 + max(2 * width, math.prod(shape[:-1]))
    check(gates.geglu, paddles_geglu, [shape, [shape[-1], 2 * width], [2 * width]], terms, frozen)


@needs_onednn
def test_tensors_that_are_views_are_read_as_what_they_show():
    """A transposed tensor is a view where Paddle's stride kernels are on."""
    name = "FLAGS_use_stride_kernel"
    before = paddle.get_flags([name])
    paddle.set_flags({name: True})
    try:
        view = paddle.randn([8, 6, 3, 2]).transpose([3, 2, 0, 1])
        weight = paddle.randn([4, 3, 3, 3])
        ours = convolution.convolution(view, weight, None, (1, 1), (1, 1), ((1, 1), (1, 1)))
        exact = F.conv2d(view.astype("float64"), weight.astype("float64"), padding=1)
        assert_close(ours.numpy(), exact.numpy(), 3 * 3 * 3)  # channels and window
        wide = paddle.randn([20, 6]).transpose([1, 0])
        scale = paddle.randn([20])
        ours = norms.layer_norm(wide, scale, scale, 1e-5)
        exact = F.layer_norm(*(t.astype("float64") if paddle.is_tensor(t) else t for t in (wide, [20], scale, scale)))
        assert_close(ours.numpy(), exact.numpy(), 20 + 20)  # mean and variance
    finally:
        paddle.set_flags(before)


@needs_onednn
def test_results_repeat_to_the_last_bit():
    """What a resumed run computes is what the undisturbed one did."""
    paddle.seed(0)
    tensors = [paddle.randn(shape) for shape in ([8, 32, 8, 8], [64, 32, 3, 3], [64])]
    for tensor in tensors:
        tensor.stop_gradient = False
    operation = lambda *t: convolution.convolution(*t, (1, 1), (1, 1), ((1, 1), (1, 1)))  # noqa: E731
    weight = paddle.randn([8, 64, 8, 8])
    first = run(operation, tensors, weight)
    for _ in range(3):
        for again, before in zip(run(operation, tensors, weight), first, strict=True):
            assert np.array_equal(again, before)


@needs_onednn
def test_what_the_library_refuses_is_named():
    with pytest.raises(RuntimeError, match=r"oneDNN's convolution_forward_primitive_desc failed with status \d"):
        convolution.convolution(
            paddle.ones([1, 3, 4, 4]), paddle.ones([2, 4, 3, 3]), None, (1, 1), (1, 1), ((0, 0), (0, 0))
        )


@needs_onednn
def test_the_backward_pass_releases_saved_tensors():
    """Else all activations of a step would stay until its end."""
    x = paddle.randn([2, 4, 16])
    x.stop_gradient = False
    hidden = x * 2.0
    watched = weakref.ref(hidden)
    y = norms.layer_norm(hidden, paddle.ones([16]), paddle.zeros([16]), 1e-5)
    del hidden
    assert watched() is not None
    y.sum().backward()
    assert watched() is None
