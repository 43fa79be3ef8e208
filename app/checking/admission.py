"""What a server would say of an adapter's files, said without one."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from app.adapters.staging import UploadedFile, stage_files, stage_folder
from app.adapters.validation import validate
from app.adapters.version import AdapterVersion
from app.engine.vllm.unloaded import UnloadedModel, describe_unloaded
from app.settings import Settings


@dataclass(frozen=True, slots=True)
class Admitted:
    """An adapter that a server would take: its two files as they were `sent` and as `served`."""

    version: AdapterVersion
    sent: Path
    served: Path
    model: UnloadedModel


@contextmanager
def admitted(
    source: Path, settings: Settings, *, force: bool = False, task: int | None = None
) -> Iterator[Admitted]:
    """Take a folder or an archive as a server would; its files are there until the end.

    `force` and `task` are those of `validate`.

    Raises:
        AdapterRejected: the server would refuse it.
        StartError: the server would not start.
    """
    with TemporaryDirectory(prefix="softserve-check-") as temporary:
        sent, served = Path(temporary, "sent"), Path(temporary, "served")
        sent.mkdir()
        # Before the model, which takes seconds to describe.
        _stage(source, sent, settings.max_adapter_bytes)
        model = describe_unloaded(settings)
        shutil.copytree(sent, served)
        version = validate(served, model.architecture, settings, force, task)
        yield Admitted(version, sent, served, model)


def _stage(source: Path, into: Path, max_bytes: int) -> None:
    if source.is_dir():
        stage_folder(source.resolve(), into, max_bytes)
        return
    with source.open("rb") as file:
        stage_files([UploadedFile(source.name, file)], into, max_bytes)
