import numpy as np
import pytest

from sd.diffusion import schedule


def test_alpha_bar_has_its_published_ends():
    alpha_bar = schedule.alpha_bar_table()
    assert alpha_bar.dtype == np.float64 and alpha_bar.shape == (1000,)
    np.testing.assert_allclose(alpha_bar[[0, 999]], [0.99915, 0.0046600985], rtol=1e-8)
    assert (np.diff(alpha_bar) < 0).all()


def test_betas_are_spaced_equally_in_their_roots():
    roots = np.sqrt(schedule.beta_table())
    np.testing.assert_allclose(np.diff(roots), (0.012**0.5 - 0.00085**0.5) / 999, rtol=1e-9)


def test_snr_falls_to_5_at_timestep_147():
    snr = schedule.snr_table(schedule.alpha_bar_table())
    assert snr[146] > 5 >= snr[147]


def test_min_snr_weight_of_epsilon_is_the_formula():
    weight = schedule.min_snr_weight(np.array([0.5, 5.0, 10.0, 50.0]), 5.0, "epsilon")
    np.testing.assert_allclose(weight, [1, 1, 0.5, 0.1])


def test_min_snr_weight_of_v_prediction_is_the_formula():
    weight = schedule.min_snr_weight(np.array([0.0, 1.0, 4.0, 9.0]), 5.0, "v_prediction")
    np.testing.assert_allclose(weight, [0, 0.5, 0.8, 0.5])


def test_with_a_floor_no_timestep_loses_its_weight():
    """Salimans and Ho's truncated SNR weight, max(snr, 1) on the image, is max(snr, 1) / (snr + 1) on v."""
    snr = np.array([0.0, 0.25, 1.0, 4.0, 9.0])
    weight = schedule.min_snr_weight(snr, 5.0, "v_prediction", floor=1.0)
    np.testing.assert_allclose(weight, [1, 0.8, 0.5, 0.8, 0.5])
    np.testing.assert_allclose(schedule.min_snr_weight(snr, 0.5, "v_prediction", floor=1.0), 0.5 / (snr + 1))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_without_gamma_every_weight_is_one(prediction_type):
    np.testing.assert_array_equal(schedule.min_snr_weight(np.array([0.1, 7.0]), None, prediction_type), [1, 1])


def test_zero_terminal_snr_keeps_the_first_entry_and_ends_at_zero():
    alpha_bar = schedule.alpha_bar_table()
    rescaled = schedule.rescale_zero_terminal_snr(alpha_bar)
    assert rescaled[-1] == 0
    np.testing.assert_allclose(rescaled[0], 0.99915, rtol=1e-12)
    middle = (np.sqrt(alpha_bar[500]) - np.sqrt(alpha_bar[999])) * np.sqrt(alpha_bar[0])
    np.testing.assert_allclose(np.sqrt(rescaled[500]), middle / (np.sqrt(alpha_bar[0]) - np.sqrt(alpha_bar[999])))
    assert (np.diff(rescaled) < 0).all()


@pytest.mark.parametrize("rescale", [False, True])
def test_the_sampler_undoes_the_same_schedule(rescale):
    from ppdiffusers import DDIMScheduler

    prediction_type = "v_prediction" if rescale else "epsilon"
    sampler = DDIMScheduler(**schedule.sampler_config(prediction_type, rescale))
    alpha_bar = schedule.alpha_bar_table()
    if rescale:
        alpha_bar = schedule.rescale_zero_terminal_snr(alpha_bar)
    np.testing.assert_allclose(sampler.alphas_cumprod.numpy(), alpha_bar, rtol=2e-5, atol=1e-7)
    sampler.set_timesteps(50)
    first, last = sampler.timesteps.numpy()[[0, -1]]
    assert (first, last) == ((999, 19) if rescale else (981, 1))
    assert sampler.config.clip_sample is False and sampler.config.set_alpha_to_one is False
