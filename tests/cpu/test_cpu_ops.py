"""Operations for a CPU against Paddle's own of that name: results and every gradient, over shapes and options."""

import weakref

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from sd.cpu import convolution, gates, norms, onednn, products

needs_onednn = pytest.mark.skipif(not onednn.is_available(), reason="this Paddle has no oneDNN beside it")


def run(operation, tensors, weight):
    """The result and the gradient of each tensor (None where it takes none), for a loss that weighs every number."""
    y = operation(*tensors)
    (y * weight).sum().backward()
    found = [y.numpy(), *(None if tensor.grad is None else tensor.grad.numpy() for tensor in tensors)]
    for tensor in tensors:
        tensor.clear_gradient(False)
    return found


def check(ours, theirs, shapes, frozen=()):
    """Both operations on random tensors of these shapes; those at the numbers `frozen` take no gradient from ours.

    Theirs always gives all: Paddle's layer_norm gives a wrong gradient of x on a CPU where the weight takes none.
    """
    paddle.seed(3)
    tensors = [paddle.randn(shape) for shape in shapes]
    for tensor in tensors:
        tensor.stop_gradient = False
    weight = paddle.randn(theirs(*tensors).shape)
    y, *wanted = run(theirs, tensors, weight)
    for number in frozen:
        tensors[number].stop_gradient = True
    expected = [y, *(None if number in frozen else gradient for number, gradient in enumerate(wanted))]
    for mine, wanted in zip(run(ours, tensors, weight), expected, strict=True):
        assert (mine is None) == (wanted is None)
        if wanted is not None:
            np.testing.assert_allclose(mine, wanted, rtol=2e-5, atol=2e-5 * np.abs(wanted).max())


CONVOLUTIONS = [
    ([2, 3, 8, 6], [5, 3, 3, 3], (1, 1), (1, 1), ((1, 1), (1, 1))),
    ([1, 4, 9, 9], [6, 4, 3, 3], (2, 2), (1, 1), ((0, 0), (1, 1))),
    ([2, 4, 9, 8], [6, 4, 3, 2], (2, 1), (2, 1), ((2, 0), (2, 0))),
    ([3, 16, 4, 4], [8, 16, 1, 1], (1, 1), (1, 1), ((0, 0), (0, 0))),
    ([1, 1, 5, 5], [1, 1, 5, 5], (1, 1), (1, 1), ((2, 2), (2, 2))),
]


def paddles_convolution(stride, dilation, padding):
    (top, left), (bottom, right) = padding

    return lambda x, weight, bias=None: F.conv2d(
        F.pad(x, [left, right, top, bottom]), weight, bias, stride, 0, dilation
    )


@needs_onednn
@pytest.mark.parametrize("frozen", [(), (0,), (1,), (1, 2), (2,)])
@pytest.mark.parametrize(("x", "weight", "stride", "dilation", "padding"), CONVOLUTIONS)
def test_convolution(x, weight, stride, dilation, padding, frozen):
    theirs = paddles_convolution(stride, dilation, padding)
    check(lambda *t: convolution.convolution(*t, stride, dilation, padding), theirs, [x, weight, weight[:1]], frozen)


@needs_onednn
@pytest.mark.parametrize(("x", "weight", "stride", "dilation", "padding"), CONVOLUTIONS)
def test_convolution_without_bias(x, weight, stride, dilation, padding):
    theirs = paddles_convolution(stride, dilation, padding)
    check(lambda *t: convolution.convolution(*t, None, stride, dilation, padding), theirs, [x, weight])


@pytest.mark.parametrize("frozen", [(), (0,), (1,), (2,)])
@pytest.mark.parametrize("shape", [[4, 7, 6], [3, 6], [2, 2, 3, 6]])
def test_linear(shape, frozen):
    check(products.linear, F.linear, [shape, [6, 5], [5]], frozen)


@needs_onednn
@pytest.mark.parametrize("frozen", [(), (0,), (1,), (2,)])
@pytest.mark.parametrize("shape", [[4, 7, 20], [3, 20]])
def test_layer_norm(shape, frozen):
    theirs = lambda x, weight, bias: F.layer_norm(x, [20], weight, bias, 1e-5)  # noqa: E731
    check(lambda *t: norms.layer_norm(*t, 1e-5), theirs, [shape, [20], [20]], frozen)


@needs_onednn
@pytest.mark.parametrize("frozen", [(), (0,), (1,), (2,)])
@pytest.mark.parametrize(
    ("shape", "groups"), [([2, 12, 5, 3], 4), ([3, 8, 4, 4], 8), ([1, 6, 2, 2], 1), ([2, 8, 10], 2)]
)
def test_group_norm(shape, groups, frozen):
    theirs = lambda x, weight, bias: F.group_norm(x, groups, 1e-6, weight, bias)  # noqa: E731
    check(lambda *t: norms.group_norm(*t, groups, 1e-6), theirs, [shape, shape[1:2], shape[1:2]], frozen)


@needs_onednn
@pytest.mark.parametrize("frozen", [(), (0,), (1, 2)])
@pytest.mark.parametrize(("shape", "groups"), [([2, 12, 5, 3], 4), ([3, 8, 4, 4], 8)])
def test_group_norm_and_silu(shape, groups, frozen):
    theirs = lambda x, weight, bias: F.silu(F.group_norm(x, groups, 1e-6, weight, bias))  # noqa: E731
    check(lambda *t: norms.group_norm(*t, groups, 1e-6, True), theirs, [shape, shape[1:2], shape[1:2]], frozen)


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
    [(3, 5, 7, 2, 6, 0.4), (2, 16, 16, 4, 8, 8**-0.5), (1, 1, 3, 1, 5, 2.0), (1, 40, 77, 8, 40, 40**-0.5)],
)
def test_attention(batch, queries, keys, heads, width, scale, frozen):
    shapes = [[batch, queries, heads * width], *([batch, keys, heads * width],) * 2]
    check(lambda *t: products.attention(*t, heads, scale), paddles_attention(heads, scale), shapes, frozen)


@needs_onednn
def test_attention_to_far_apart_scores_has_no_overflow():
    query = paddle.full([1, 1, 4], 1e4)
    key = paddle.to_tensor([[[1e4] * 4, [-1e4] * 4]])
    value = paddle.to_tensor([[[1.0] * 4, [2.0] * 4]])
    assert products.attention(query, key, value, 1, 1.0).tolist() == [[[1.0] * 4]]


def paddles_gated_gelu(x):
    straight, gate = x.chunk(2, axis=-1)
    return straight * F.gelu(gate)


@needs_onednn
@pytest.mark.parametrize("shape", [[2, 5, 12], [7, 2], [1, 3, 4, 64]])
def test_gated_gelu(shape):
    check(gates.gated_gelu, paddles_gated_gelu, [shape])


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
        np.testing.assert_allclose(ours.numpy(), F.conv2d(view, weight, padding=1).numpy(), atol=1e-4)
        wide = paddle.randn([20, 6]).transpose([1, 0])
        scale = paddle.randn([20])
        ours = norms.layer_norm(wide, scale, scale, 1e-5)
        np.testing.assert_allclose(ours.numpy(), F.layer_norm(wide, [20], scale, scale).numpy(), atol=1e-5)
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
def test_the_backward_pass_gives_up_what_the_forward_kept():
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
