"""Templates that become live, go, come back, and survive a restart; and the folder of them."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

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
from app.templates.store import TemplateRecord
from app.versions.history import Watched
from softserve.schema.templates import Template
from tests.fake_engine import FakeEngine

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


async def opened(folder: Path, **settings: Any) -> TemplateRegistry:
    registry = TemplateRegistry(FakeEngine(), Settings(adapter_store=folder / "store", **settings))
    await registry.open()
    return registry


@pytest.fixture
async def registry(tmp_path: Path) -> TemplateRegistry:
    return await opened(tmp_path)


def _history(record: TemplateRecord) -> str:
    """The instructions, newest first, the live one in brackets."""
    return "".join(
        f"[{each.template.instruction}]" if each.digest == record.live else
        each.template.instruction
        for each in record.history
    )  # fmt: skip


async def test_versions_and_rollback(registry: TemplateRegistry, tmp_path: Path) -> None:
    for instruction in "abc":
        await registry.publish("t", template(instruction), "upload")
    assert _history(registry.get("t")) == "[c]ba"
    assert _history(await registry.rollback("t")) == "c[b]a"
    assert _history(await registry.rollback("t")) == "cb[a]"
    with pytest.raises(TemplateConflict):
        await registry.rollback("t")
    assert _history(await registry.rollback("t", template("c").digest[:8])) == "[c]ba"
    await registry.rollback("t")
    assert _history(await registry.publish("t", template("d"), "upload")) == "[d]bac"

    again = await opened(tmp_path)
    assert again.get("t") == registry.get("t")
    resolved = await again.resolve(f"t@{template('b').digest[:6]}")
    assert resolved.compiled.template.instruction == "b"
    assert (await again.resolve("t")).version == template("d").digest


async def test_as_many_versions_as_are_kept(tmp_path: Path) -> None:
    registry = await opened(tmp_path, adapter_retention=2)
    for instruction in "abc":
        await registry.publish("t", template(instruction), "upload")
    assert _history(registry.get("t")) == "[c]b"


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
    for change in (registry.rollback("x"), registry.remove("x")):
        with pytest.raises(TemplateNotFound):
            await change


async def test_what_is_invalid_leaves_what_is_live(registry: TemplateRegistry) -> None:
    await registry.publish("t", template("a"), "upload")
    with pytest.raises(TemplateRejected):
        await registry.publish("t", template("<|end|>"), "upload")
    assert _history(registry.get("t")) == "[a]"


async def test_removed(registry: TemplateRegistry, tmp_path: Path) -> None:
    await registry.publish("t", template(), "upload")
    await registry.remove("t")
    assert (registry.list(), registry.live) == ((), ())
    assert (await opened(tmp_path)).list() == ()


async def test_a_damaged_record_is_left_out(tmp_path: Path) -> None:
    registry = await opened(tmp_path)
    for name in ("a", "b", "c"):
        await registry.publish(name, template(), "upload")
    folder = tmp_path / "store" / "templates"
    (folder / "a.json").write_text("{")
    changed = (folder / "b.json").read_text().replace('"instruction":"a"', '"instruction":"x"')
    (folder / "b.json").write_text(changed)
    (folder / "d.new").write_text("half")
    again = await opened(tmp_path)
    assert [record.name for record in again.list()] == ["c"]
    assert not (folder / "d.new").exists()


async def test_a_disk_that_is_full_changes_nothing(
    registry: TemplateRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    await registry.publish("t", template("a"), "upload")

    def full(record: TemplateRecord) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(registry._store, "save", full)
    with pytest.raises(Unavailable):
        await registry.publish("t", template("b"), "upload")
    assert _history(registry.get("t")) == "[a]"


async def test_changes_at_once_come_one_after_the_other(registry: TemplateRegistry) -> None:
    await asyncio.gather(*(registry.publish("t", template(each), "upload") for each in "abcde"))
    record = registry.get("t")
    assert len(record.history) == 5
    assert record.live == record.history[0].digest


class Folder:
    """A watched folder whose looks are taken by hand."""

    def __init__(self, registry: TemplateRegistry, path: Path) -> None:
        self.path = path
        self.path.mkdir()
        self.watcher = TemplateFolder(registry, path)

    def write(self, name: str, text: str) -> None:
        (self.path / name).write_text(text)

    async def look(self, times: int = 2) -> None:
        for _ in range(times):
            await self.watcher.look()


@pytest.fixture
def folder(registry: TemplateRegistry, tmp_path: Path) -> Folder:
    return Folder(registry, tmp_path / "templates")


async def test_what_lies_there_at_the_start_is_live(
    registry: TemplateRegistry, folder: Folder
) -> None:
    folder.write("t.yaml", YAML.format(instruction="a"))
    folder.write("notes.txt", "no template")
    folder.write(".hidden.yaml", "no template")
    await folder.watcher.catch_up()
    assert registry.live == ("t",)


async def test_a_file_comes_changes_spoils_and_goes(
    registry: TemplateRegistry, folder: Folder
) -> None:
    await folder.watcher.catch_up()
    folder.write("t.yaml", YAML.format(instruction="a"))
    await folder.look(1)
    assert registry.live == ()
    assert await folder.watcher.look() == ["t"]
    assert await folder.watcher.look() == []
    assert _history(registry.get("t")) == "[a]"

    folder.write("t.yaml", YAML.format(instruction="b"))
    await folder.look()
    assert _history(registry.get("t")) == "[b]a"

    folder.write("t.yaml", "instruction: [")
    await folder.look()
    record = registry.get("t")
    assert _history(record) == "[b]a"
    assert record.watched is not None
    assert "not YAML" in (record.watched.rejected or "")

    folder.write("t.yaml", YAML.format(instruction="'<|end|>'"))
    await folder.look()
    assert "special token" in (registry.watched()["t"].rejected or "")
    assert _history(registry.get("t")) == "[b]a"

    (folder.path / "t.yaml").unlink()
    await folder.look()
    assert _history(registry.get("t")) == "ba"
    with pytest.raises(TemplateNotFound, match="its file is gone"):
        await registry.resolve("t")
    assert _history(await registry.rollback("t")) == "[b]a"


async def test_a_change_of_the_examples_file_is_one(
    registry: TemplateRegistry, folder: Folder
) -> None:
    folder.write("t.yaml", YAML.format(instruction="a") + "examples_file: t.jsonl")
    await folder.look()
    assert "t.jsonl is not there" in (registry.watched()["t"].rejected or "")
    folder.write("t.jsonl", '{"text": "a", "output": "b"}\n')
    await folder.look()
    assert len((await registry.resolve("t")).compiled.examples) == 1


async def test_what_an_operator_did_stays_until_the_file_changes(
    registry: TemplateRegistry, folder: Folder, tmp_path: Path
) -> None:
    folder.write("t.yaml", YAML.format(instruction="a"))
    await folder.look()
    await registry.publish("t", template("op"), "upload")
    await folder.look()
    assert (await registry.resolve("t")).compiled.template.instruction == "op"
    again = await opened(tmp_path)
    await TemplateFolder(again, folder.path).catch_up()
    assert (await again.resolve("t")).compiled.template.instruction == "op"
    # The same content, written in another way.
    folder.write("t.yaml", "# a comment\n" + YAML.format(instruction="a"))
    await folder.look()
    assert (await registry.resolve("t")).compiled.template.instruction == "op"
    await registry.remove("t")
    await folder.look()
    assert registry.list() == ()
    folder.write("t.yaml", YAML.format(instruction="b"))
    await folder.look()
    assert _history(registry.get("t")) == "[b]"
    # What an operator has added outlasts the file.
    await registry.publish("t", template("b"), "upload")
    (folder.path / "t.yaml").unlink()
    await folder.look()
    assert registry.live == ("t",)


async def test_a_missing_folder_retires_nothing(registry: TemplateRegistry, folder: Folder) -> None:
    folder.write("t.yaml", YAML.format(instruction="a"))
    await folder.look()
    (folder.path / "t.yaml").unlink()
    folder.path.rmdir()
    await folder.look(3)
    assert registry.live == ("t",)


async def test_the_watched_state_is_kept(registry: TemplateRegistry, tmp_path: Path) -> None:
    await registry.mark_watched("t", Watched("s", rejected="why"))
    assert (await opened(tmp_path)).watched() == {"t": Watched("s", rejected="why")}
    with pytest.raises(TemplateNotFound, match="why"):
        await registry.resolve("t")
