"""What lies in the watched folder and is no adapter: why, and what to do about it."""

from pathlib import Path

from app.adapters.archive import is_archive_name
from app.adapters.location import PEFT_PICKLE, is_pickle, likeliest_pickle, not_read
from softserve.schema.adapters import ADAPTER_FILES

# What nobody takes for an adapter: what is said about adapters, and what they are made from.
DOCUMENTS = (".md", ".txt", ".rst", ".jsonl", ".csv", ".py", ".sh", ".yaml", ".yml")
DOCUMENT_NAMES = ("LICENSE", "NOTICE", "README", "Makefile")
BOTH_FILES = " and ".join(ADAPTER_FILES)


def is_document(path: Path) -> bool:
    """Whether it is a document, or a folder of nothing but documents."""
    if path.is_dir():
        files = _visible(path)
        return bool(files) and all(not file.is_dir() and is_document(file) for file in files)
    return path.name.lower().endswith(DOCUMENTS) or path.name in DOCUMENT_NAMES


def why_no_adapter(path: Path) -> str:
    """Of a folder without an adapter's files, or of something that is no folder."""
    if not path.is_dir():
        return _why_no_folder(path)
    names = [file.name for file in _visible(path)]
    if not names:
        return f"its folder is empty: copy {BOTH_FILES} there"
    if PEFT_PICKLE in names:
        return not_read(PEFT_PICKLE)
    if archive := next(filter(is_archive_name, names), None):
        return f"its folder holds an archive, {archive[:64]!r}: unpack it there"
    return (
        f"its folder has neither {' nor '.join(ADAPTER_FILES)}: copy the folder there that PEFT's "
        "save_pretrained writes"
    )


def why_no_weights(folder: Path) -> str | None:
    """Of a folder whose weights are a pickle; None where there is none."""
    names = [file.name for file in _visible(folder) if is_pickle(file.name)]
    return not_read(likeliest_pickle(names)) if names else None


def _why_no_folder(path: Path) -> str:
    if not path.exists():
        return "it is a link that leads nowhere: link to an adapter's folder, or remove it"
    if is_archive_name(path.name):
        return (
            "it is an archive: unpack it there into a folder of its own, or send it with "
            "`softserve adapter add`"
        )
    if is_pickle(path.name):
        return not_read(path.name)
    return f"it is a file, and an adapter is a folder: put {BOTH_FILES} into a folder of their own"


def _visible(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if not file.name.startswith("."))
