"""What is served of an adapter, where it is not to the byte what was sent."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from softserve.schema.adapters import CONFIG_FILE, WEIGHTS_FILE


def write_weights(folder: Path, content: Mapping[str, Any]) -> None:
    """Put these tensors, by their names, in place of the file's."""
    from safetensors.torch import save_file

    written = folder / f"{WEIGHTS_FILE}.served"
    save_file(dict(content), written, metadata={"format": "pt"})
    written.replace(folder / WEIGHTS_FILE)


def write_config(folder: Path, changes: Mapping[str, Any]) -> None:
    """Put these fields in place of the file's, and keep the others."""
    file = folder / CONFIG_FILE
    fields = json.loads(file.read_text("utf-8-sig")) | changes
    # In its place, not over it: the file may be shared with who sent it.
    written = folder / f"{CONFIG_FILE}.served"
    written.write_text(json.dumps(fields, indent=2))
    written.replace(file)


def pattern_for_each(values: Mapping[str, float], default: float) -> dict[str, float]:
    """`rank_pattern` or `alpha_pattern` with the names of modules, a key for each value.

    The engine runs the keys with an engine that can take forever: none of a stranger's is left.
    """
    modules: dict[float, list[str]] = {}
    for module, value in values.items():
        if value != default:
            modules.setdefault(value, []).append(re.escape(module))
    return {f"^(?:{'|'.join(names)})": value for value, names in modules.items()}
