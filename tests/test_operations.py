"""The multiply-adds of a step: layers counted by hand, and the published counts of the published shapes."""

from types import SimpleNamespace

import paddle
import pytest

from bench import operations
from bench.operations import PUBLISHED, component_macs, count_program, step_flops

CONV = 2 * 8 * 8 * 6 * (3 // 1) * 3 * 3  # batch, positions, channels out, channels in, kernel
LINEAR = 2 * 5 * 7 * 11
ATTENTION = 2 * 4 * 5 * 5 * 3  # heads x lengths x length x numbers of a head


def build():
    paddle.nn.Conv2D(3, 6, 3, stride=2, padding=1)(paddle.static.data("image", [2, 3, 16, 16]))
    paddle.nn.Linear(7, 11)(paddle.static.data("states", [2, 5, 7]))
    query = paddle.static.data("query", [2, 4, 5, 3])
    paddle.matmul(query, paddle.static.data("key", [2, 4, 5, 3]), transpose_y=True)


def test_multiply_adds_equal_a_count_by_hand():
    assert count_program(build) == CONV + LINEAR + ATTENTION
    assert count_program(build, attention=False) == CONV + LINEAR
    assert paddle.in_dynamic_mode()


def test_a_grouped_convolution_and_a_transposed_factor():
    def grouped():
        paddle.nn.Conv2D(4, 8, 1, groups=2)(paddle.static.data("image", [1, 4, 3, 3]))
        paddle.matmul(paddle.static.data("x", [9, 2]), paddle.static.data("y", [9, 4]), transpose_x=True)

    assert count_program(grouped) == 3 * 3 * 8 * 2 + 2 * 4 * 9


def test_what_it_cannot_count_is_refused():
    def transposed():
        paddle.nn.Conv2DTranspose(3, 3, 3)(paddle.static.data("image", [1, 3, 8, 8]))

    with pytest.raises(ValueError, match="conv2d_transpose"):
        count_program(transposed)
    with pytest.raises(ValueError, match="whole shape"):
        count_program(lambda: paddle.nn.Conv2D(3, 3, 3)(paddle.static.data("image", [-1, 3, 8, 8])))


@pytest.fixture
def gpu_build(monkeypatch):
    """Programs as the GPU build of Paddle writes them: F.linear is one operation, `linear_v2`, there."""
    monkeypatch.setattr(paddle, "is_compiled_with_cuda", lambda: True)
    component_macs.cache_clear()
    yield
    component_macs.cache_clear()


def test_the_gpu_build_is_counted_alike(gpu_build):
    assert count_program(build) == CONV + LINEAR + ATTENTION
    assert count_program(build, attention=False) == CONV + LINEAR
    for component, published in PUBLISHED.items():
        assert component_macs(component, 512, attention=False) / 1e9 == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize("name", ["fused_linear_param_grad_add", "fused_gemm_epilogue", "conv3d", "fc_matmul"])
def test_an_unknown_operation_that_multiplies_is_refused(name):
    operation = SimpleNamespace(name=lambda: f"pd_op.{name}")
    with pytest.raises(ValueError, match=f"operation {name} multiplies matrices"):
        operations._count_operation(operation, True)
    assert operations._count_operation(SimpleNamespace(name=lambda: "pd_op.bilinear_interp"), True) == 0


@pytest.mark.parametrize("component", PUBLISHED)
def test_the_published_shapes_have_the_published_counts(component):
    assert component_macs(component, 512, attention=False) / 1e9 == pytest.approx(PUBLISHED[component], rel=0.01)


def test_a_step_is_three_unet_passes_and_one_of_each_frozen_component():
    unet, vae, text = (
        component_macs(name, 256 if name != "text_encoder" else 0) for name in ("unet", "vae", "text_encoder")
    )
    assert step_flops(256, 4) == 2 * 4 * (3 * unet + vae + text)
    assert step_flops(256, vae=False, text_encoder=False) == 2 * 3 * unet
    assert step_flops(256, train_text_encoder=True) - step_flops(256) == 2 * 2 * text
