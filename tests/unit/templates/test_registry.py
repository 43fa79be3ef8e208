"""Templates that become live, go, come back, and survive a restart; and the folder of them.

What templates have in common with adapters is tested with the records, the store and the adapters.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from app.errors import (
    InvalidRequest,
    TemplateConflict,
    TemplateNotFound,
    TemplateRejected,
    Unavailable,
)
from app.settings import Settings
from app.templates.folder import TemplateFolder
from app.templates.registry import TemplateRegistry
from app.versions.records import Record, Watched
from app.versions.watcher import FolderWatcher
from softserve.schema.templates import Template
from tests.fake_engine import FakeEngine

pytestmark = pytest.mark.usefixtures("in_a_hurry")

YAML = """
instruction: {instruction}
input_variables: [text]
example_format: "{{{{ text }}}} {{{{ output }}}}"
query_format: "{{{{ text }}}}"
"""


def template(instruction: str = "a", **fields: Any) -> Template:
    return Template(
        instruction=instruction,
        input_variables=["text"],
        example_format="{{ text }} {{ output }}",
        query_format="{{ text }}",
        **fields,
    )


@asynccontextmanager
async def opened(folder: Path, **settings: Any) -> AsyncIterator[TemplateRegistry]:
    registry = TemplateRegistry(FakeEngine(), Settings(adapter_store=folder / "store", **settings))
    await registry.open()
    yield registry
    registry.close()


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[TemplateRegistry]:
    async with opened(tmp_path) as registry:
        yield registry


def _history(registry: TemplateRegistry, record: Record | None = None) -> str:
    """The instructions of t, newest first, the live one in brackets."""
    record = record or registry.names.get("t")
    texts = {digest: registry.names.store.version(digest) for digest in record.digests}
    return "".join(
        f"[{text.instruction}]" if digest == record.live else text.instruction
        for digest, text in texts.items()
    )


async def test_versions_rollback_and_restart(tmp_path: Path) -> None:
    async with opened(tmp_path) as registry:
        for instruction in "abc":
            await registry.publish("t", template(instruction), "upload")
        assert _history(registry) == "[c]ba"
        assert _history(registry, await registry.names.rollback("t")) == "c[b]a"
        assert _history(registry, await registry.names.rollback("t")) == "cb[a]"
        with pytest.raises(TemplateConflict):
            await registry.names.rollback("t")
        await registry.names.rollback("t", template("c").digest[:8])
        assert _history(registry) == "[c]ba"
        await registry.names.rollback("t")
        assert _history(registry, await registry.publish("t", template("d"), "upload")) == "[d]bac"
        before = registry.names.get("t")
    async with opened(tmp_path) as again:
        assert again.names.get("t") == before
        resolved = await again.resolve(f"t@{template('b').digest[:6]}")
        assert resolved.compiled.template.instruction == "b"
        assert (await again.resolve("t")).version == template("d").digest


async def test_as_many_versions_as_are_kept(tmp_path: Path) -> None:
    async with opened(tmp_path, adapter_retention=2) as registry:
        for instruction in "abc":
            await registry.publish("t", template(instruction), "upload")
        assert _history(registry) == "[c]b"


async def test_what_is_not_there(registry: TemplateRegistry) -> None:
    await registry.publish("sentiment", template(), "upload")
    for reference in ("sentimnt", "sentiment@abc", "sentiment@abcdef012345", "", "@", "../x"):
        with pytest.raises(TemplateNotFound) as raised:
            await registry.resolve(reference)
        assert raised.value.param == "template"
    with pytest.raises(TemplateNotFound, match="did you mean sentiment"):
        await registry.resolve("sentimnt")
    for name in ("../x", "", ".x", "a" * 65, "a/b"):
        with pytest.raises(InvalidRequest):
            await registry.publish(name, template(), "upload")
    for change in (registry.names.rollback("x"), registry.names.remove("x")):
        with pytest.raises(TemplateNotFound):
            await change


async def test_what_is_invalid_leaves_what_is_live(
    registry: TemplateRegistry, tmp_path: Path
) -> None:
    await registry.publish("t", template("a"), "upload")
    with pytest.raises(TemplateRejected):
        await registry.publish("t", template("<|end|>"), "upload")
    assert _history(registry) == "[a]"
    assert len(list((tmp_path / "store/templates/versions").iterdir())) == 1


async def test_removed(tmp_path: Path) -> None:
    async with opened(tmp_path) as registry:
        await registry.publish("t", template(), "upload")
        await registry.names.remove("t")
        assert (registry.names.list(), registry.names.live) == ((), ())
    async with opened(tmp_path) as again:
        assert again.names.list() == ()


async def test_what_is_damaged_is_told_of(tmp_path: Path) -> None:
    async with opened(tmp_path) as registry:
        for name in ("a", "b", "c"):
            await registry.publish(name, template(name), "upload")
    folder = tmp_path / "store" / "templates"
    (folder / "names" / "a.json").write_text("{")
    changed = folder / "versions" / template("b").digest / "version.json"
    changed.chmod(0o600)
    changed.write_text(changed.read_text().replace('"instruction":"b"', '"instruction":"x"'))
    async with opened(tmp_path) as again:
        a, b, c = again.names.list()
        assert (a.live, b.live, c.live) == (None, None, template("c").digest)
        assert a.rejected == "its record in the store is damaged: add the template again"
        assert b.rejected == (
            f"its live version {template('b').digest[:12]} is damaged in the store: add it again"
        )
        with pytest.raises(TemplateNotFound, match="b is not served: its live version"):
            await again.resolve("b")


async def test_a_store_of_0_1_0(tmp_path: Path) -> None:
    """Its records held the templates themselves."""
    old = tmp_path / "store" / "templates"
    old.mkdir(parents=True)
    versions = [
        {
            "digest": template(text, temperature=0.0).digest,
            "created_at": f"2026-11-2{day}T09:30:00Z",
            "source": "template_dir",
            "template": {
                "temperature": 0.0,
                "instruction": text,
                "input_variables": ["text"],
                "example_format": "{{ text }} {{ output }}",
                "query_format": "{{ text }}",
            },
        }
        for day, text in ((4, "new"), (3, "old"))
    ]
    record = {"name": "t", "live": versions[1]["digest"], "history": versions}
    (old / "t.json").write_text(json.dumps(record | {"watched": {"signature": "s"}}))
    (old / "damaged.json").write_text("{")
    async with opened(tmp_path) as registry:
        assert _history(registry) == "new[old]"
        assert registry.names.watched() == {"t": Watched("s")}
        assert (await registry.resolve("t")).compiled.template == template("old", temperature=0.0)
        assert registry.names.get("t").history[0].created_at.day == 24
        assert registry.names.get("damaged").rejected is not None
    async with opened(tmp_path) as again:
        assert _history(again) == "new[old]"
    assert list(old.glob("*.json")) == []


async def test_a_disk_that_is_full_changes_nothing(
    registry: TemplateRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    await registry.publish("t", template("a"), "upload")

    def full(record: Record) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(registry.names.store, "save", full)
    with pytest.raises(Unavailable):
        await registry.publish("t", template("b"), "upload")
    assert _history(registry) == "[a]"


async def test_changes_at_once_come_one_after_the_other(tmp_path: Path) -> None:
    async with opened(tmp_path, adapter_retention=9) as registry:
        await asyncio.gather(*(registry.publish("t", template(each), "upload") for each in "abcde"))
        record = registry.names.get("t")
        assert len(record.history) == 5
        assert record.live == record.history[0].digest


class Folder:
    """A watched folder, and the names that its watcher said are live."""

    def __init__(self, registry: TemplateRegistry, path: Path) -> None:
        self.path = path
        self.path.mkdir(exist_ok=True)
        self.registry = registry
        self.published: list[str] = []

    def write(self, name: str, text: str) -> None:
        (self.path / name).write_text(text)

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        async def on_live(name: str) -> None:
            self.published.append(name)

        contents = TemplateFolder(self.registry, self.path, on_live)
        watcher = FolderWatcher(self.registry.names, contents)
        running = asyncio.create_task(watcher.run())
        try:
            await watcher.catch_up(10)
            yield
            assert not running.done()
        finally:
            running.cancel()
            await asyncio.wait([running])

    @property
    def rejected(self) -> str:
        """Of t."""
        watched = self.registry.names.watched().get("t")
        return (watched and watched.rejected) or ""

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def until_history(self, expected: str) -> None:
        await self.until(self.registry.names.list)
        await self.until(lambda: _history(self.registry) == expected)

    async def acted_upon(self, name: str = "t") -> None:
        """Wait until the watcher has seen what was written last."""
        before = self.registry.names.watched().get(name)
        await self.until(lambda: self.registry.names.watched().get(name) != before)


@pytest.fixture
def folder(registry: TemplateRegistry, tmp_path: Path) -> Folder:
    return Folder(registry, tmp_path / "templates")


async def test_what_lies_there_at_the_start_is_live(
    registry: TemplateRegistry, folder: Folder
) -> None:
    folder.write("t.yaml", YAML.format(instruction="a"))
    folder.write("notes.txt", "no template")
    folder.write(".hidden.yaml", "no template")
    async with folder.watched():
        assert registry.names.live == ("t",)
        assert folder.published == ["t"]


async def test_a_file_comes_changes_spoils_and_goes(
    registry: TemplateRegistry, folder: Folder
) -> None:
    async with folder.watched():
        folder.write("t.yaml", YAML.format(instruction="a"))
        await folder.until_history("[a]")
        folder.write("t.yaml", YAML.format(instruction="b"))
        await folder.until_history("[b]a")
        await folder.until(lambda: folder.published == ["t", "t"])

        folder.write("t.yaml", "instruction: [")
        await folder.until(lambda: "not YAML" in folder.rejected)
        assert _history(registry) == "[b]a"

        folder.write("t.yaml", YAML.format(instruction="'<|end|>'"))
        await folder.until(lambda: "special token" in folder.rejected)
        assert _history(registry) == "[b]a"

        (folder.path / "t.yaml").unlink()
        await folder.until_history("ba")
        with pytest.raises(TemplateNotFound, match="its file is gone"):
            await registry.resolve("t")
        assert _history(registry, await registry.names.rollback("t")) == "[b]a"
        assert folder.published == ["t", "t"]


async def test_a_change_of_the_examples_file_is_one(
    registry: TemplateRegistry, folder: Folder
) -> None:
    async with folder.watched():
        folder.write("t.yaml", YAML.format(instruction="a") + "examples_file: t.jsonl")
        await folder.until(lambda: "t.jsonl is not there" in folder.rejected)
        folder.write("t.jsonl", '{"text": "a", "output": "b"}\n')
        await folder.until(lambda: registry.names.live)
        assert len((await registry.resolve("t")).compiled.examples) == 1


async def test_what_cannot_be_read_is_rejected(registry: TemplateRegistry, folder: Folder) -> None:
    (folder.path / "t.yaml").symlink_to("/etc/passwd")
    async with folder.watched():
        await folder.until(lambda: "cannot be read" in folder.rejected)


async def test_what_is_no_template_is_told_once(registry: TemplateRegistry, folder: Folder) -> None:
    folder.write("t.yml", YAML.format(instruction="a"))
    with capture_logs() as logs:
        async with folder.watched():
            folder.write("a.yaml", YAML.format(instruction="a"))
            await folder.until(lambda: folder.published)
    told = [each for each in logs if each["event"] == "not a template: one is a file NAME.yaml"]
    assert [each["found"] for each in told] == ["t.yml"]


async def test_a_volume_of_kubernetes_is_watched(
    registry: TemplateRegistry, folder: Folder
) -> None:
    """Each file is a link into `..data`, which is led to another folder when all is replaced."""
    for version in ("one", "two"):
        (folder.path / f"..{version}").mkdir()
        folder.write(f"..{version}/t.yaml", YAML.format(instruction=version))
    (folder.path / "..data").symlink_to("..one")
    (folder.path / "t.yaml").symlink_to("..data/t.yaml")
    async with folder.watched():
        await folder.until(lambda: len(folder.published) == 1)
        (folder.path / "..new").symlink_to("..two")
        (folder.path / "..new").rename(folder.path / "..data")
        await folder.until(lambda: len(folder.published) == 2)
    assert (await registry.resolve("t")).compiled.template.instruction == "two"


async def test_what_an_operator_did_stays_until_the_file_changes(
    registry: TemplateRegistry, folder: Folder
) -> None:
    async def instruction() -> str:
        return (await registry.resolve("t")).compiled.template.instruction

    folder.write("t.yaml", YAML.format(instruction="a"))
    async with folder.watched():
        await registry.publish("t", template("op"), "upload")
    # As after a restart.
    async with folder.watched():
        assert await instruction() == "op"
        # The same content, written in another way.
        folder.write("t.yaml", "# a comment\n" + YAML.format(instruction="a"))
        await folder.acted_upon()
        assert await instruction() == "op"
        await registry.names.remove("t")
    async with folder.watched():
        assert registry.names.list() == ()
        folder.write("t.yaml", YAML.format(instruction="b"))
        await folder.until_history("[b]")
        # What an operator has added outlasts the file.
        await registry.publish("t", template("b"), "upload")
        (folder.path / "t.yaml").unlink()
        await folder.until(lambda: not registry.names.watched())
        assert registry.names.live == ("t",)


async def test_a_missing_folder_retires_nothing(registry: TemplateRegistry, folder: Folder) -> None:
    folder.write("t.yaml", YAML.format(instruction="a"))
    async with folder.watched():
        await folder.until_history("[a]")
    (folder.path / "t.yaml").unlink()
    folder.path.rmdir()
    async with folder.watched():
        await asyncio.sleep(0.3)
        assert registry.names.live == ("t",)


async def test_the_watched_state_is_kept(tmp_path: Path) -> None:
    async with opened(tmp_path) as registry:
        await registry.names.mark_watched("t", Watched("s", rejected="why"))
    async with opened(tmp_path) as again:
        assert again.names.watched() == {"t": Watched("s", rejected="why")}
        with pytest.raises(TemplateNotFound, match="why"):
            await again.resolve("t")
