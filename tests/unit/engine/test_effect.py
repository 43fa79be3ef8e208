"""How far two next-token distributions are apart, and whether that is more than noise."""

import math
import warnings

import numpy as np
import pytest

from app.engine.effect import CLEAR_DISTANCE, Logprobs, effect_of


def logprobs(*probabilities: float) -> Logprobs:
    with np.errstate(divide="ignore"):
        return np.log(np.array(probabilities, np.float32))


def noisy(base: Logprobs, seed: int, scale: float = 1e-6) -> Logprobs:
    noise = scale * np.random.default_rng(seed).standard_normal(len(base))
    noisy: Logprobs = base + noise.astype(np.float32)
    return noisy


def random_logprobs(seed: int, num_tokens: int = 50_000) -> Logprobs:
    logits = 5 * np.random.default_rng(seed).standard_normal(num_tokens)
    normalized: Logprobs = (logits - np.log(np.sum(np.exp(logits)))).astype(np.float32)
    return normalized


BASE = logprobs(0.5, 0.25, 0.25)


def test_a_divergence_by_hand() -> None:
    effect = effect_of(BASE, logprobs(0.25, 0.25, 0.5), BASE)

    expected = 0.5 * math.log(2) + 0.25 * math.log(0.5)
    assert effect.kl_divergence == pytest.approx(expected)
    assert effect.changed


def test_it_is_of_the_base_model_from_the_adapted_one() -> None:
    one, other = logprobs(0.9, 0.05, 0.05), logprobs(0.4, 0.3, 0.3)

    forward, backward = effect_of(one, other, one), effect_of(other, one, other)

    assert forward.kl_divergence == pytest.approx(
        0.9 * math.log(0.9 / 0.4) + 2 * 0.05 * math.log(0.05 / 0.3)
    )
    assert forward.kl_divergence != pytest.approx(backward.kl_divergence)


def test_equal_to_the_bit_is_no_effect() -> None:
    base = random_logprobs(0)

    effect = effect_of(base, base.copy(), base.copy())

    assert effect.kl_divergence == 0.0
    assert not effect.changed


def test_one_bit_of_one_unlikely_token_is_a_change() -> None:
    base = random_logprobs(0)
    adapted = base.copy()
    rarest = np.argmin(base)
    adapted[rarest] = np.nextafter(base[rarest], np.float32(0))

    assert effect_of(base, adapted, base).changed


def test_a_small_divergence_is_not_lost_in_rounding() -> None:
    """FP32 probabilities add up to 1 only to about 1e-7."""
    base = random_logprobs(0)
    moved = base + 1e-3 * np.random.default_rng(1).standard_normal(len(base)).astype(np.float32)

    weights = np.exp(base.astype(float))
    shift = moved.astype(float) - base
    variance = np.average(shift**2, weights=weights) - np.average(shift, weights=weights) ** 2
    effect = effect_of(base, moved, base)

    assert effect.kl_divergence == pytest.approx(variance / 2, rel=1e-2)
    assert 0 < effect.kl_divergence < 1e-6


def test_a_divergence_is_never_negative() -> None:
    base = random_logprobs(0)
    for seed in range(20):
        assert effect_of(base, noisy(base, seed, 1e-7), base).kl_divergence >= 0.0


def test_ids_without_logits_count_for_nothing() -> None:
    base, adapted = logprobs(0.5, 0.5, 0.0), logprobs(0.25, 0.75, 0.0)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        effect = effect_of(base, adapted, base)

    assert effect.kl_divergence == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))


def test_what_has_become_impossible_is_infinitely_far() -> None:
    effect = effect_of(BASE, logprobs(0.5, 0.5, 0.0), BASE)

    assert effect.kl_divergence == math.inf
    assert effect.changed


def test_what_is_not_a_number_has_changed() -> None:
    effect = effect_of(BASE, np.full(3, np.nan, np.float32), BASE)

    assert math.isnan(effect.kl_divergence)
    assert effect.changed


@pytest.mark.parametrize("seed", range(5))
def test_noise_as_large_as_the_base_models_own_is_no_effect(seed: int) -> None:
    base = random_logprobs(seed)
    first, adapted, again = noisy(base, 1), noisy(base, 2), noisy(base, 3)

    assert not effect_of(first, adapted, again).changed


def test_an_answer_of_before_is_told_from_todays() -> None:
    """The first answer was given on a busy server, the others are alike."""
    base = random_logprobs(0)

    effect = effect_of(noisy(base, 1), base, base)

    assert effect.kl_divergence == 0.0
    assert not effect.changed


def test_an_effect_above_the_noise() -> None:
    base = random_logprobs(0)
    first, adapted, again = noisy(base, 1), noisy(base, 2, 1e-3), noisy(base, 3)

    assert effect_of(first, adapted, again).changed
    assert np.abs(np.exp(first) - np.exp(adapted)).sum() / 2 < CLEAR_DISTANCE
