"""Where the store of versions is, and where in an origin those of one model are."""

import hashlib
import re
from pathlib import Path

from platformdirs import user_data_path

from app.engine.model import default
from app.settings import Settings


def store_folder(settings: Settings) -> Path:
    """Adapters fit one model, so without a setting each model has a store of its own."""
    if settings.adapter_store is not None:
        return settings.adapter_store.expanduser()
    parent = user_data_path("softserve") / "adapters"
    if settings.model is None:
        return parent / default.NAME
    path = Path(settings.model).expanduser()
    model = str(path.resolve()) if path.is_dir() else settings.model
    # The last part for the eyes, the hash because two models may share it.
    readable = _readable(model)
    return parent / f"{readable}-{hashlib.sha256(model.encode()).hexdigest()[:8]}"


def origin_folder(settings: Settings) -> str:
    """By the model's name, which replicas share wherever each of them has its folder."""
    return _readable(settings.served_model_name or settings.model or default.NAME)


def _readable(model: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", Path(model).name)
