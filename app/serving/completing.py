"""The work of `/generate`: a request's prompts, each completed in its turn."""

from collections.abc import Sequence
from contextlib import aclosing

from app.engine.generation import GenerationChunk, GenerationRequest
from app.engine.protocol import Decoding, Engine, Prompt
from app.errors import RequestTimedOut
from app.serving.run import Run
from app.tasks import gather


class Completing:
    """Has the engine complete prompts; the reader of the run gets their chunks."""

    def __init__(
        self,
        engine: Engine,
        request: GenerationRequest,
        prompts: Sequence[Prompt],
        run: Run[GenerationChunk],
    ) -> None:
        self._engine = engine
        self._decoding = Decoding(request.sampling, request.logprobs, request.priority)
        self._prompts = prompts
        self._run = run

    async def __call__(self) -> None:
        await gather(self._complete(prompt) for prompt in self._prompts)

    async def _complete(self, prompt: Prompt) -> None:
        sampling = self._decoding.sampling
        try:
            async with self._run.turn(prompt, sampling.num_sequences, sampling.n) as turn:
                running = self._engine.generate(turn.request_id, prompt, self._decoding)
                async with aclosing(running) as chunks:
                    async for chunk in chunks:
                        self._run.put(turn.record(chunk))
                        await turn.keep_pace()
        except RequestTimedOut:
            # What the other prompts have is the answer.
            for index in range(sampling.n):
                self._run.put(self._run.record(_never_begun(prompt, index)))


def _never_begun(prompt: Prompt, index: int) -> GenerationChunk:
    """The only chunk of a completion whose time was up before its turn."""
    return GenerationChunk(
        prompt_index=prompt.index,
        index=index,
        text="",
        token_ids=(),
        num_prompt_tokens=prompt.num_tokens,
        num_cached_tokens=0,
        queue_seconds=0.0,
        finish_reason="timeout",
        num_virtual_tokens=prompt.num_virtual_tokens,
    )
