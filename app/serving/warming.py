"""Warming: the prefix cache holds what a template's prompts begin with, before anybody asks."""

import uuid
from contextlib import aclosing

import structlog

from app.adapters.registry import AdapterRegistry
from app.engine.generation import resolve_sampling
from app.engine.protocol import Decoding, Engine, Prompt
from app.errors import SoftserveError
from app.serving.prompts import prompt_of, tokenize
from app.templates.registry import TemplateRegistry

log = structlog.get_logger(__name__)


class Warming:
    """Warms the templates that ask for it."""

    def __init__(
        self, engine: Engine, adapters: AdapterRegistry, templates: TemplateRegistry
    ) -> None:
        self._engine = engine
        self._adapters = adapters
        self._templates = templates

    async def warm_all(self) -> None:
        """Warm what is live."""
        for name in self._templates.names.live:
            await self.warm(name)

    async def warm(self, name: str) -> None:
        """Have the prefix cache hold what a live template's prompts begin with, if it asks for it.

        Of a split, those of each version. It is a help, not a promise: the reason why it fails is
        logged.
        """
        if self._engine.info.encoder_window is not None:
            # What an encoder makes of a prompt's beginning depends on the rest.
            return
        record = self._templates.names.store.record(name)
        for digest in sorted(record.served) if record is not None else ():
            await self._warm(name, digest)

    async def _warm(self, name: str, digest: str) -> None:
        try:
            template = await self._templates.resolve(f"{name}@{digest}")
            fields = template.compiled.template
            if not fields.warm:
                return
            shots = template.compiled.examples.shots[: fields.max_shots]
            prefix = template.compiled.shared_prefix(shots)
            async with self._adapters.lease(fields.adapter, fields.soft_prompt) as adapters:
                token_ids = await tokenize(self._engine, prefix)
                room = self._engine.info.context_window - adapters.num_virtual_tokens - 1
                if token_ids:
                    await self._compute(prompt_of(0, token_ids[:room], adapters))
            log.info("a template is warm", name=name, version=digest, tokens=len(token_ids))
        except SoftserveError as error:
            log.warning("a template cannot be warmed", name=name, version=digest, why=error.message)

    async def _compute(self, prompt: Prompt) -> None:
        """Have the prefix cache hold a prompt."""
        decoding = Decoding(resolve_sampling(max_new_tokens=1))
        async with aclosing(
            self._engine.generate(f"warm-{uuid.uuid4().hex}", prompt, decoding)
        ) as chunks:
            async for _ in chunks:
                pass
