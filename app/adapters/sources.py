"""Where an adapter may be fetched from: a folder that the operator permitted, or the hub."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from app.adapters.location import PEFT_PICKLE, not_read
from app.adapters.roots import is_below
from app.errors import AdapterRejected, AdapterTooLarge, InvalidRequest
from softserve.schema.adapters import ADAPTER_FILES

HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class LocalFolder:
    """A folder below a permitted one, with every link resolved."""

    folder: Path


@dataclass(frozen=True, slots=True)
class HubRepository:
    """A repository on the hub; without a `revision`, its main branch."""

    repo_id: str
    revision: str | None = None


def resolve_source(
    source: str, revision: str | None, roots: Sequence[Path]
) -> LocalFolder | HubRepository:
    """What `source` means: a path below one of `roots`, from there if it is relative, or a hub id.

    Raises:
        AdapterRejected: neither, or a path that leads outside.
        InvalidRequest: a revision of a folder.
    """
    if "\0" in source or not source.strip():
        raise AdapterRejected("source is empty: give a path or a hub id", param="source")
    folders = [folder for root in roots if _is_folder(folder := root / source)]
    permitted = [folder.resolve() for folder in folders if is_below(folder, roots)]
    if permitted:
        if revision is not None:
            raise InvalidRequest(
                "a folder has no revisions: leave revision out, or give a hub id as source",
                param="revision",
            )
        return LocalFolder(permitted[0])
    if not folders and HUB_ID.fullmatch(source) is not None:
        return HubRepository(source, revision)
    # One answer whether or not there is such a folder: nobody learns what else is on this disk.
    raise AdapterRejected(
        f"{source[:200]} is neither a folder below --adapter-dir or an --adapter-root nor a hub id "
        "(OWNER/NAME): add the files themselves, or start the server with its --adapter-root",
        param="source",
    )


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


def fetch_hub(repository: HubRepository, into: Path, max_bytes: int) -> str:
    """Download an adapter's two files; the source with the commit that they are of.

    Raises:
        AdapterTooLarge: the files are over the limit; nothing was downloaded.
        AdapterRejected: the hub does not have it, does not give it, or cannot be reached.
    """
    from huggingface_hub import model_info, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    # Which httpx the hub's library is built on changes with its version.
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    repo_id, revision = repository.repo_id, repository.revision
    try:
        info = model_info(repo_id, revision=revision, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        _check_sizes(repo_id, sizes, max_bytes)
        # Real files, not links into a cache.
        snapshot_download(
            repo_id, revision=info.sha, allow_patterns=list(ADAPTER_FILES), local_dir=into
        )
    except HFValidationError as error:
        raise _rejected(f"{repo_id} is not a hub id: give it as OWNER/NAME") from error
    except GatedRepoError as error:
        raise _rejected(
            f"the hub's {repo_id} is gated: accept its terms there, and set HF_TOKEN for the server"
        ) from error
    except RepositoryNotFoundError as error:
        raise _rejected(
            f"{repo_id} is neither a folder that this server may read nor a repository on the hub: "
            "check source, and set HF_TOKEN for the server if it is private"
        ) from error
    except RevisionNotFoundError as error:
        raise _rejected(
            f"the hub's {repo_id} has no revision {revision}: check it", param="revision"
        ) from error
    except (httpx.HTTPError, OSError) as error:
        raise _rejected(
            f"{repo_id} is not a folder that this server may read, and the hub cannot be reached "
            "to look for it: check source and the server's network, or add the files themselves"
        ) from error
    return f"{repo_id}@{info.sha}"


def _check_sizes(repo_id: str, sizes: dict[str, int], max_bytes: int) -> None:
    if missing := [name for name in ADAPTER_FILES if name not in sizes]:
        why = not_read(PEFT_PICKLE) if PEFT_PICKLE in sizes else "it is not a PEFT adapter"
        raise _rejected(f"the hub's {repo_id} has no {' and no '.join(missing)}: {why}")
    size = sum(sizes[name] for name in ADAPTER_FILES)
    if size > max_bytes:
        raise AdapterTooLarge(
            f"the files of {repo_id} have {size:,} bytes and the limit is {max_bytes:,}: "
            "raise --max-adapter-bytes",
            param="source",
        )


def _rejected(message: str, *, param: str = "source") -> AdapterRejected:
    return AdapterRejected(message, param=param)
