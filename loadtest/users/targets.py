"""What a server has that can be asked for."""

from collections.abc import Iterable
from dataclasses import dataclass

from loadtest.options import Options
from softserve.client import Client
from softserve.schema.adapters import AdapterKind, AdapterOut
from softserve.schema.server import ModelInfo
from softserve.schema.templates import Template


@dataclass(frozen=True, slots=True)
class Target:
    """A name as a request gives it (`NAME`, `NAME@VERSION`, `NAME#TASK`), and what it may mean."""

    name: str
    versions: frozenset[str]


@dataclass(frozen=True, slots=True)
class TemplateTarget(Target):
    template: Template


@dataclass(frozen=True, slots=True)
class Targets:
    info: ModelInfo
    adapters: list[Target]
    soft_prompts: list[Target]
    templates: list[TemplateTarget]

    def template(self, name: str) -> Template:
        return next(each.template for each in self.templates if each.name == name)

    def versions(self) -> dict[str, frozenset[str]]:
        """What each name may mean."""
        return {
            each.name: each.versions
            for each in (*self.adapters, *self.soft_prompts, *self.templates)
        }


def find_targets(client: Client, options: Options) -> Targets:
    """Those that the options name, else all that are live.

    Raises:
        softserve.client.ClientError: the server cannot be reached, refuses, or lacks one of them.
    """
    listed = client.adapters.list().adapters
    return Targets(
        client.info(),
        _adapters(listed, "lora", options.adapters),
        _adapters(listed, "soft_prompt", options.soft_prompts),
        list(_templates(client, options.templates)),
    )


def _adapters(listed: list[AdapterOut], kind: AdapterKind, asked: list[str]) -> list[Target]:
    live = {each.name: each for each in listed if each.live and each.kind == kind}
    if not asked:
        return [Target(_name(each), _meant(each)) for each in live.values()]
    return [_named(name, live) for name in asked]


def _named(name: str, live: dict[str, AdapterOut]) -> Target:
    bare, _, digits = name.partition("#")[0].partition("@")
    if bare not in live:
        # Asked for all the same: the server's own answer says what is wrong.
        return Target(name, frozenset())
    versions = _meant(live[bare])
    if digits:
        all_versions = (each.version for each in live[bare].versions)
        versions = frozenset(each for each in all_versions if each.startswith(digits))
    return Target(name, versions)


def _name(adapter: AdapterOut) -> str:
    """A soft prompt of several tasks has to be asked for one."""
    (version,) = (each for each in adapter.versions if each.version == adapter.live)
    has_tasks = version.tasks is not None and version.task is None
    return f"{adapter.name}#0" if has_tasks else adapter.name


def _meant(adapter: AdapterOut) -> frozenset[str]:
    return frozenset(adapter.split.versions if adapter.split else filter(None, [adapter.live]))


def _templates(client: Client, asked: list[str]) -> Iterable[TemplateTarget]:
    names = asked or [each.name for each in client.templates.list().templates if each.live]
    for name in names:
        shown = client.templates.show(name)
        if shown.template and (asked or shown.template.labels):
            versions = shown.split.versions if shown.split else filter(None, [shown.live])
            yield TemplateTarget(name, frozenset(versions), shown.template)
