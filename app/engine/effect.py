"""What an adapter changes: the next-token distributions of one prompt, with it and without it."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from app.engine.protocol import Engine, Prompt

# Of shape (vocabulary_size,).
Logprobs = NDArray[np.float32]

# The last bits of an answer depend on what else is in the batch: more than that is no accident.
CLEAR_DISTANCE = 0.1
# Two answers of the base model show the size of that only roughly.
NOISE_FACTOR = 4.0


@dataclass(frozen=True, slots=True)
class Effect:
    """How far two next-token distributions are apart.

    `kl_divergence` is KL(base || adapted), in nats. `changed` is whether they differ by clearly
    more than the base model does from itself when it is asked twice.
    """

    kl_divergence: float
    changed: bool


async def measure_effect(engine: Engine, request_id: str, prompt: Prompt, base: Logprobs) -> Effect:
    """What a prompt's adapters change; `base` is what the base model has answered to it."""
    adapted = await engine.next_token_logprobs(request_id, prompt)
    if _distance(base, adapted) > CLEAR_DISTANCE:
        return Effect(_kl_divergence(base, adapted), changed=True)
    again = await engine.next_token_logprobs(request_id, without_adapters(prompt))
    return effect_of(base, adapted, again)


def without_adapters(prompt: Prompt) -> Prompt:
    return replace(prompt, lora=None, soft_prompt=None, num_virtual_tokens=0, task=None)


def effect_of(base: Logprobs, adapted: Logprobs, base_again: Logprobs) -> Effect:
    """The effect, told from what only looks like one. What is not a number has changed."""
    noise = NOISE_FACTOR * _distance(base, base_again)
    distance = min(_distance(base, adapted), _distance(base_again, adapted))
    return Effect(_kl_divergence(base_again, adapted), changed=not distance <= noise)


def _kl_divergence(base: Logprobs, adapted: Logprobs) -> float:
    log_p, log_q = _normalized(base), _normalized(adapted)
    p = np.exp(log_p)
    # What cannot come adds nothing: the engine has no logits for some ids at the end.
    possible = p > 0.0
    divergence = float(np.sum(p[possible] * (log_p[possible] - log_q[possible])))
    # It cannot be negative, but for rounding.
    return 0.0 if divergence < 0.0 else divergence


def _distance(one: Logprobs, other: Logprobs) -> float:
    """Total variation: zero only where no bit of any probability differs."""
    return 0.5 * float(np.sum(np.abs(np.exp(_wide(one)) - np.exp(_wide(other)))))


def _normalized(logprobs: Logprobs) -> NDArray[np.float64]:
    """In FP32 the probabilities add up to 1 only nearly, which would hide a small divergence."""
    wide = _wide(logprobs)
    normalized: NDArray[np.float64] = wide - np.log(np.sum(np.exp(wide)))
    return normalized


def _wide(logprobs: Logprobs) -> NDArray[np.float64]:
    return logprobs.astype(np.float64)
