"""What a version changes, measured while it becomes live: a short prompt, with and without it.

Matrices that were never trained are legal, and an engine may ignore what it has loaded: a version
without any effect is served, and never silently.
"""

import asyncio
import math
import uuid
from dataclasses import replace
from pathlib import Path

import structlog

from app.adapters.validation.zeros import changes_nothing
from app.adapters.version import AdapterVersion
from app.engine.effect import Effect, Logprobs, measure_effect, without_adapters
from app.engine.protocol import Engine, Prompt
from app.errors import AdapterRejected

log = structlog.get_logger(__name__)

# Several tokens, so that attention has something to choose from, and fewer than a block of the KV
# cache holds, so that no answer comes from the prefix cache.
PROBE_TEXT = "The most important thing is"
# A version that has embeddings of its own for some tokens may change nothing else.
MAX_TRAINED_TOKENS = 32
# A version becomes live on a busy server too, without that anybody knows its effect.
TIMEOUT_SECONDS = 10.0
CHECK = "check that it was trained, and that what was saved is what was trained"
NO_EFFECT = f"it changes nothing on the probe prompt: the answers are the base model's; {CHECK}"
# Rounding alone makes as much, as of a DoRA whose magnitudes are still the base model's.
ROUNDING_NATS = 1e-8
NEARLY_NO_EFFECT = (
    f"it changes no more on the probe prompt than rounding does, so far as can be told; {CHECK}"
)


def warning_of(effect: Effect | None) -> str | None:
    """What whoever uses a version should know of its effect, if anything."""
    if effect is None:
        return None
    if not effect.changed:
        return NO_EFFECT
    return NEARLY_NO_EFFECT if effect.kl_divergence < ROUNDING_NATS else None


class Probe:
    """Measures the effects of versions that the engine holds, one after the other.

    At the same time, they would share batches and disturb each other's last bits.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._turn = asyncio.Lock()
        # The last prompt, and what the base model answered: it is nearly always the same.
        self._asked: tuple[Prompt, Logprobs] | None = None

    async def measure(self, version: AdapterVersion, folder: Path) -> Effect | None:
        """The effect of a version whose files are in `folder`, None where the engine is too busy.

        Raises:
            AdapterRejected: no prompt fits beside it, or no answer with it is a number.
        """
        prompt = await self._prompt(version)
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS), self._turn:
                effect = await self._ask(prompt)
        except TimeoutError:
            log.warning(
                "the effect of an adapter is not measured: the engine is too busy to answer within "
                f"{TIMEOUT_SECONDS:g} s; add it again later",
                version=version.digest,
            )
            return None
        if not math.isfinite(effect.kl_divergence):
            raise AdapterRejected(
                "with it, the model's scores are not finite numbers: its values, or lora_alpha, "
                "are too large to compute with in this precision; go back to a checkpoint before "
                "training went wrong"
            )
        # Where the server is busy, nothing can look like a little.
        if effect.changed and await asyncio.to_thread(changes_nothing, folder):
            return replace(effect, changed=False)
        return effect

    async def _prompt(self, version: AdapterVersion) -> Prompt:
        """The probe, with a version: of several tasks the first, and behind it what it trained."""
        num_virtual_tokens = version.num_virtual_tokens or 0
        info = self._engine.info
        # One more is for the token behind it, unless the encoder has the prompt alone.
        room = info.prompt_window - num_virtual_tokens - (info.encoder_window is None)
        if room < 1:
            raise AdapterRejected(
                f"its {num_virtual_tokens:,} virtual tokens leave no room for a prompt in the "
                f"context window of {info.prompt_window:,}: train with fewer"
            )
        trained = version.trained_tokens[:MAX_TRAINED_TOKENS]
        token_ids = [*await self._engine.tokenize(PROBE_TEXT), *trained][-room:]
        if version.kind == "lora":
            return Prompt(0, token_ids, lora=version.digest).behind_forced(info)
        prompt = Prompt(
            0,
            token_ids,
            soft_prompt=version.digest,
            num_virtual_tokens=num_virtual_tokens,
            task=None if version.num_tasks is None else 0,
        )
        return prompt.behind_forced(info)

    async def _ask(self, prompt: Prompt) -> Effect:
        request_id = f"effect-{uuid.uuid4().hex}"
        base = without_adapters(prompt)
        if self._asked is None or self._asked[0] != base:
            self._asked = base, await self._engine.next_token_logprobs(request_id, base)
        return await measure_effect(self._engine, request_id, prompt, self._asked[1])
