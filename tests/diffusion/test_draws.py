import numpy as np
import pytest

from sd.diffusion.draws import draw


def test_draws_have_their_shapes_dtypes_and_moments():
    drawn = draw(np.random.default_rng(0), latent_shape=(4, 32, 32), noise_offset=0.1, input_perturbation=0.1)
    shapes = {name: (value.dtype.name, value.shape) for name, value in drawn.items() if name != "timestep"}
    assert shapes == {
        "noise": ("float32", (4, 32, 32)),
        "posterior_noise": ("float32", (4, 32, 32)),
        "offset_noise": ("float32", (4, 1, 1)),
        "perturbation_noise": ("float32", (4, 32, 32)),
    }
    assert drawn["timestep"].dtype == np.int64 and drawn["timestep"].shape == ()
    for name in ("noise", "posterior_noise", "perturbation_noise"):
        assert abs(drawn[name].mean()) < 0.06 and abs(drawn[name].std() - 1) < 0.05
    assert abs(np.corrcoef(drawn["noise"].ravel(), drawn["posterior_noise"].ravel())[0, 1]) < 0.06


def test_timesteps_are_uniform():
    counts = np.zeros(1000)
    for seed in range(4000):
        counts[draw(np.random.default_rng(seed), latent_shape=(1, 1, 1))["timestep"]] += 1
    bands = counts.reshape(10, 100).sum(axis=1)
    assert counts.sum() == 4000 and (abs(bands - 400) < 5 * 400**0.5).all()


def test_the_generator_alone_decides():
    first, again, other = (draw(np.random.default_rng(seed), latent_shape=(4, 8, 8)) for seed in (1, 1, 2))
    for name, value in first.items():
        np.testing.assert_array_equal(value, again[name])
    assert not np.array_equal(first["noise"], other["noise"])


@pytest.mark.parametrize("options", [{"noise_offset": 0.1}, {"input_perturbation": 0.1}])
def test_an_option_leaves_the_other_draws_as_they_are(options):
    plain = draw(np.random.default_rng(3), latent_shape=(4, 8, 8))
    with_option = draw(np.random.default_rng(3), latent_shape=(4, 8, 8), **options)
    both = draw(np.random.default_rng(3), latent_shape=(4, 8, 8), noise_offset=0.1, input_perturbation=0.1)
    assert set(plain) == {"timestep", "noise", "posterior_noise"} and len(with_option) == 4
    for name, value in plain.items():
        np.testing.assert_array_equal(value, with_option[name])
    for name, value in with_option.items():
        np.testing.assert_array_equal(value, both[name])
