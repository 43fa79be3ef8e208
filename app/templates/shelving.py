"""What the versions of templates are made of in an origin: one file with the content."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from app.templates.registry import TemplateRegistry
from app.templates.source import MAX_EXAMPLES_BYTES, MAX_TEMPLATE_BYTES, validate_template
from softserve.schema.templates import Template

FILE = "template.json"


class TemplateGoods:
    """Templates as they travel."""

    # JSON may write one character as six.
    files: Mapping[str, int] = {FILE: 6 * (MAX_TEMPLATE_BYTES + MAX_EXAMPLES_BYTES)}

    def __init__(self, registry: TemplateRegistry) -> None:
        self._registry = registry

    def sent(self, folder: Path, version: Template) -> Mapping[str, Path | bytes]:
        return {FILE: version.canonical().encode()}

    def digest(self, sent: Path, facts: Mapping[str, Any]) -> str:
        return hashlib.sha256((sent / FILE).read_bytes()).hexdigest()

    @asynccontextmanager
    async def checked(
        self, sent: Path, facts: Mapping[str, Any]
    ) -> AsyncIterator[tuple[Path, Template]]:
        content = await asyncio.to_thread((sent / FILE).read_bytes)
        template = validate_template(json.loads(content))
        await self._registry.compiled(template)
        async with self._registry.names.staging() as folder:
            yield folder, template

    def facts(self, version: Template) -> Mapping[str, Any]:
        return {}

    def told(self, facts: Mapping[str, Any]) -> None:
        """Nobody asks for more than which versions there are."""
