"""The live templates: kept in step with a watched folder, and warm where they ask for it."""

import uuid
from contextlib import aclosing
from pathlib import Path

import structlog

from app.adapters.registry import Registry
from app.engine.generation import PromptStyle, resolve_sampling
from app.engine.protocol import Decoding, Engine, Prompt
from app.errors import SoftserveError
from app.serving.service import prompt_of, tokenize
from app.templates.folder import TemplateFolder
from app.templates.registry import TemplateRegistry

log = structlog.get_logger(__name__)


class LiveTemplates:
    """The templates, as far as the server's life goes."""

    def __init__(
        self, engine: Engine, registry: Registry, templates: TemplateRegistry, folder: Path
    ) -> None:
        self._engine = engine
        self._registry = registry
        self._templates = templates
        self._folder = TemplateFolder(templates, folder)

    async def open(self) -> None:
        """Read the store, which the adapters' has locked: what was live is live again."""
        await self._templates.open()

    async def catch_up(self) -> None:
        """Make live what lies in the watched folder, and warm what asks for it."""
        await self._folder.catch_up()
        for name in self._templates.live:
            await self.warm(name)

    async def run(self) -> None:
        """Watch the folder until cancelled."""
        await self._folder.run(self.warm)

    async def warm(self, name: str) -> None:
        """Have the prefix cache hold what a live template's prompts begin with, if it asks for it.

        It is a help, not a promise: the reason why it fails is logged.
        """
        try:
            template = await self._templates.resolve(name)
            fields = template.compiled.template
            if not fields.warm:
                return
            texts = template.compiled.examples.texts[: fields.max_shots]
            text = template.compiled.shared_prefix(texts)
            as_chat = PromptStyle(fields.use_chat_template, fields.system)
            async with self._registry.lease(fields.adapter, fields.soft_prompt) as adapters:
                token_ids = await tokenize(self._engine, text, as_chat)
                room = self._engine.info.context_window - adapters.num_virtual_tokens - 1
                if token_ids:
                    await self._compute(prompt_of(0, token_ids[:room], adapters))
            log.info("a template is warm", name=name, tokens=len(token_ids))
        except SoftserveError as error:
            log.warning("a template cannot be warmed", name=name, why=error.message)

    async def _compute(self, prompt: Prompt) -> None:
        """Have the prefix cache hold a prompt."""
        decoding = Decoding(resolve_sampling(max_new_tokens=1))
        async with aclosing(
            self._engine.generate(f"warm-{uuid.uuid4().hex}", prompt, decoding)
        ) as chunks:
            async for _ in chunks:
                pass
