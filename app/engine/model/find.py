"""Find the folder of the model to serve, and check it before an engine process is started on it."""

import json
from pathlib import Path

from app.engine.model import default as default_model
from app.engine.model.precision import QUANTIZED_FROM
from app.errors import ModelNotFound, ModelNotLoadable
from app.settings import Settings

INDEX_FILE = "model.safetensors.index.json"
# Of config.json: transformers writes the name or path that a model was loaded by.
SAVED_FROM = "_name_or_path"
WEIGHTS_AND_TOKENIZER = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]


def find_model(settings: Settings) -> tuple[str, Path]:
    """The served name and the local folder of the model; a hub id is downloaded.

    Raises:
        ModelNotFound: neither a folder nor a hub repository.
        ModelNotLoadable: the default model could not be made.
    """
    if settings.model is None:
        folder = default_model.default_model(settings.cache_dir, default_model.progress_on_stderr())
        name = default_model.NAME
    elif (folder := Path(settings.model).expanduser()).is_dir():
        folder = folder.resolve()
        name = _hub_id_in_cache(folder) or folder.name
    else:
        folder = _download(settings.model)
        name = settings.model
    return settings.served_model_name or name, folder


def _download(model: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    if model.startswith(("/", ".", "~")):
        raise ModelNotFound(f"there is no folder {model}: give a folder or a hub id to --model")
    try:
        return Path(snapshot_download(model, allow_patterns=WEIGHTS_AND_TOKENIZER))
    except HFValidationError as error:
        raise ModelNotFound(
            f"{model} is neither a folder here nor a hub id (OWNER/NAME): check --model"
        ) from error
    except GatedRepoError as error:
        raise ModelNotFound(
            f"the hub's {model} is gated: accept its terms there and set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelNotFound(
            f"{model} is neither a folder here nor a repository on the hub: check --model, "
            "and set HF_TOKEN if it is private"
        ) from error
    except (LocalEntryNotFoundError, OSError) as error:
        raise ModelNotFound(
            f"{model} is not a folder here, and the hub cannot be reached to look for it: "
            "check --model and the network"
        ) from error


def base_names(settings: Settings, folder: Path) -> set[str]:
    """What adapters may call their base model, which goes by many names.

    As it is served, as `--model` gives it, its folder, its hub id with and without the owner, what
    it was saved from, and what it was quantized from.
    """
    config = json.loads((folder / "config.json").read_bytes())
    hub_id = _hub_id_in_cache(folder) or ""
    names = {
        *(settings.served_model_name, settings.model, folder.name),
        *(hub_id, hub_id.rpartition("/")[2]),
        *(config.get(field) for field in (SAVED_FROM, QUANTIZED_FROM)),
    }
    return {name for name in names if isinstance(name, str) and name}


def _hub_id_in_cache(folder: Path) -> str | None:
    """The hub id of a folder in the hub's cache, `models--OWNER--NAME/snapshots/REVISION`."""
    kind, *parts = folder.parent.parent.name.split("--")
    in_cache = folder.parent.name == "snapshots" and kind == "models"
    return "/".join(parts) if in_cache else None


def check_model_folder(folder: Path) -> None:
    """Refuse what no engine could load, with a better sentence than an engine's.

    Raises:
        ModelNotLoadable: config.json or the weights are missing or unreadable.
    """
    from safetensors import SafetensorError, safe_open

    try:
        config = json.loads((folder / "config.json").read_bytes())
    except FileNotFoundError as error:
        raise ModelNotLoadable(
            f"{folder} has no config.json: --model takes a folder in the Hugging Face format"
        ) from error
    except OSError as error:
        raise ModelNotLoadable(
            f"{folder / 'config.json'} cannot be read ({error.strerror}): check the folder"
        ) from error
    except ValueError as error:
        raise ModelNotLoadable(f"{folder / 'config.json'} is not JSON: {error}") from error
    if not isinstance(config, dict) or not config.get("architectures"):
        raise ModelNotLoadable(
            f"{folder / 'config.json'} names no architectures: it is not a model's configuration"
        )
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ModelNotLoadable(
            f"{folder} has no *.safetensors: convert its weights with transformers' save_pretrained"
        )
    if missing := _shards_named(folder) - {file.name for file in weights}:
        raise ModelNotLoadable(
            f"{folder} lacks {sorted(missing)[0]}, which {INDEX_FILE} names: copy or fetch it again"
        )
    for file in weights:
        try:
            with safe_open(file, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            raise ModelNotLoadable(f"{file} is damaged ({error}): fetch it again") from error


def _shards_named(folder: Path) -> set[str]:
    """The files that hold the weights, where an index names them."""
    try:
        index = json.loads((folder / INDEX_FILE).read_bytes())
        return set(index["weight_map"].values())
    except FileNotFoundError:
        return set()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelNotLoadable(
            f"{folder / INDEX_FILE} is no index of weights: fetch it again"
        ) from (error)
