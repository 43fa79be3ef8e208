"""The files of an adapter, on their way from this machine to a server."""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from softserve.client.errors import NotAnUpload
from softserve.schema.adapters import ADAPTER_FILES

ARCHIVES = (".tar.gz", ".tgz", ".tar", ".zip")

# Hears how many bytes have been sent, and how many there are.
OnProgress = Callable[[int, int], object]


@dataclass(frozen=True, slots=True)
class Upload:
    """Files, the fields of the form that they are sent in, and who hears how far they are."""

    files: Sequence[Path]
    fields: Mapping[str, str]
    on_progress: OnProgress | None = None

    def open(self, opened: ExitStack) -> Iterator[tuple[str, io.FileIO]]:
        """Each file with its name. It is read as it is sent: it may be larger than the memory."""
        num_sent = 0

        def count(num_bytes: int) -> None:
            nonlocal num_sent
            num_sent += num_bytes
            if self.on_progress is not None:
                self.on_progress(num_sent, num_all)

        try:
            files = [opened.enter_context(_Counted(file, count)) for file in self.files]
            num_all = sum(file.stat().st_size for file in self.files)
        except OSError as error:
            raise _unreadable(error.filename or self.files[0], error) from None
        for path, file in zip(self.files, files, strict=True):
            yield path.name, file


class _Counted(io.FileIO):
    """A file that tells how many bytes each reading of it took."""

    def __init__(self, path: Path, on_read: Callable[[int], object]) -> None:
        super().__init__(path)
        self._on_read = on_read

    def read(self, size: int | None = -1, /) -> bytes:
        if chunk := super().read(size) or b"":
            self._on_read(len(chunk))
        return chunk


def files_of(source: Path) -> list[Path]:
    """What to send of a folder that PEFT wrote, or of an archive of one.

    Raises:
        NotAnUpload: it is neither, or cannot be read.
    """
    try:
        if source.is_dir():
            return _files_in(source)
        source.stat()
    except OSError as error:
        raise _unreadable(source, error) from None
    if not source.name.lower().endswith(ARCHIVES):
        raise NotAnUpload(
            f"{source} is neither a folder nor a .tar.gz, .tgz, .tar or .zip: give the folder that "
            "PEFT's save_pretrained wrote, or an archive of it"
        )
    return [source]


def _files_in(folder: Path) -> list[Path]:
    if not (missing := _missing(folder)):
        return [folder / name for name in ADAPTER_FILES]
    # Where nothing is on top, as PEFT saves a named adapter.
    below = [] if len(missing) < len(ADAPTER_FILES) else _folders_with_both_files(folder)
    if len(below) == 1:
        return [below[0] / name for name in ADAPTER_FILES]
    advice = "give the folder that PEFT's save_pretrained wrote, with safe_serialization=True"
    if below:
        advice = f"give one of {', '.join(map(str, below))}"
    raise NotAnUpload(f"{folder} has no {' and no '.join(missing)}: {advice}")


def _missing(folder: Path) -> list[str]:
    return [name for name in ADAPTER_FILES if not (folder / name).is_file()]


def _folders_with_both_files(folder: Path) -> list[Path]:
    return sorted(each for each in folder.iterdir() if each.is_dir() and not _missing(each))


def _unreadable(path: Path | str, error: OSError) -> NotAnUpload:
    return NotAnUpload(f"{path} cannot be read ({error.strerror}): check the path")
