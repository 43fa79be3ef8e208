"""Whether the base model that an adapter declares is the one that is served.

One model goes by many names: under other owners, quantized, in a folder. What its name leaves open
the shapes decide, and that is noted.
"""

import re
from collections.abc import Collection, Iterator

from app.adapters.archive import shown
from app.errors import AdapterRejected
from softserve.schema.adapters import CONFIG_FILE

SEPARATORS = re.compile(r"[-_. ]+")
# How copies of a model in other numbers are called, at the end of its name.
QUANTIZED = re.compile(
    r"(?:-(?:unsloth|bnb|nf4|gguf|ggml|awq|gptq|autoround|exl[23]|hqq|aqlm|mlx|marlin|torchao|hf"
    r"|quantized|quant|dynamic|static|[2-8]bit|\d+g|g\d+"
    r"|(?:nv|mx)?fp\d+|f(?:16|32)|bf16|u?int\d+|w\d+a\d+|i?q\d(?:-[01k])?(?:-(?:xs|s|m|l))?))+$"
)
# Of a family whose name was changed.
MAKER = re.compile(r"^meta-(?=llama)")
# Where the hub's cache keeps a model.
CACHED = re.compile(r"(?:^|/)models--(?:[^/]+--)?(?P<name>[^/]+?)(?:/snapshots(?:/[^/]*)?)?/*$")
IS_FOLDER = re.compile(r"^(?:[/.~]|[A-Za-z]:|[^/]*/[^/]*/)")
SAYS_NOTHING = re.compile(
    r"(?:-?(?:base|models?|llm|pretrained|checkpoints?|ckpt|merged|final|best|last|outputs?|out"
    r"|weights|snapshots?|main|tmp|\d+|[0-9a-f]{12,}))+"
)
# Seven billion parameters, or 135 million.
SIZE = re.compile(r"(?:^|-|x)\d+(?:-\d+)?[bm](?:-|$)")


def check_base_model(declared: str | None, names: Collection[str]) -> Iterator[str]:
    """Yield a note where the name leaves it open. `names` are what the base model goes by.

    Raises:
        AdapterRejected: it is another model's name.
    """
    if declared is None or plain_name(declared) in {plain_name(name) for name in names}:
        return
    if not _leaves_it_open(declared, names):
        known = sorted(names)
        raise AdapterRejected(
            f"the adapter was trained on {shown(declared)} and this server runs "
            f"{' or '.join(known)}: send it to a server of its base model; if the two are the "
            "same, upload it with force=true, or write "
            f"{shown(known[0])} for base_model_name_or_path in its {CONFIG_FILE}"
        )
    yield (
        f"base_model_name_or_path {shown(declared)} does not say which model it is: the shapes of "
        "its tensors fit the base model"
    )


def plain_name(name: str) -> str:
    """A model's name without its owner, its folder, and how its numbers are kept."""
    path = _path(name)
    cached = CACHED.search(path)
    spelled = _spelled(path.rpartition("/")[2] if cached is None else cached["name"])
    return MAKER.sub("", QUANTIZED.sub("", spelled))


def _leaves_it_open(declared: str, names: Collection[str]) -> bool:
    """A folder that is called as no model is, or lies in one that is called as the base model."""
    path = _path(declared)
    parts = [_spelled(part) for part in path.split("/")]
    if all(SAYS_NOTHING.fullmatch(part) for part in parts if part):
        return True
    if IS_FOLDER.match(path) is None or CACHED.search(path):
        return False
    own = {plain_name(name) for name in names}
    return not any(SIZE.search(part) for part in parts if plain_name(part) not in own)


def _path(name: str) -> str:
    return re.sub(r"(?:/+\.?)+$", "", name.strip().replace("\\", "/"))


def _spelled(name: str) -> str:
    return SEPARATORS.sub("-", name.lower()).strip("-")
