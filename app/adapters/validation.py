"""Check the two files of an adapter before the engine sees them: that they fit the base model.

Both files are a stranger's. Nothing in them is run, not even a regular expression, and the tensors
are read one at a time, each only after its shape is known to be right.
"""

import hashlib
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, NoReturn

from app.adapters.archive import FILES, MAX_CONFIG_BYTES, shown
from app.adapters.version import AdapterVersion
from app.engine.protocol import Architecture, ModuleShape
from app.errors import AdapterRejected, AdapterTooLarge
from softserve.schema.adapters import CONFIG_FILE, WEIGHTS_FILE
from softserve.schema.server import Limits

Config = dict[str, Any]

MAX_NESTING = 100
MAX_NAME_LENGTH = 1000
# Tens of thousands of tensors fit; the library would hold ten times as much.
MAX_HEADER_BYTES = 16 << 20
READ_BYTES = 1 << 20

DTYPES = ("F32", "F16", "BF16")
MAX_FP32 = 3.4028234e38

SOFT_PROMPT_TYPES = ("PROMPT_TUNING", "P_TUNING")
SOFT_PROMPT_TENSOR = "prompt_embeddings"

# What PEFT's LoRA has and vLLM has not (its lora/peft_helper.py), with what to do instead.
UNSUPPORTED_IN_LORA = {
    "use_dora": "the engine cannot run DoRA: train with use_dora=False",
    "lora_bias": "the engine adds no bias: train with lora_bias=False",
    "alora_invocation_tokens": "the engine applies a LoRA to every token: train a plain LoRA",
    "layer_replication": "the base model is served with its own layers: train without it",
    "use_bdlora": "block-diagonal LoRA is not supported: train a plain LoRA",
    "use_qalora": "QALoRA is not supported: train with use_qalora=False",
    "trainable_token_indices": "the base model's tokens are shared by all: train without it",
    "target_parameters": "only whole modules can be adapted: use target_modules",
    "megatron_config": "Megatron's layers are not the base model's: train without it",
    "arrow_config": "routing between LoRAs is not supported: train a plain LoRA",
    "kasa_config": "KaSA changes the base model's weights: train a plain LoRA",
    "monteclora_config": "MonteCLoRA samples its weights: train a plain LoRA",
}
# Those that leave the base model's weights as they are.
INIT_LORA_WEIGHTS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")

LORA_PREFIX = "base_model.model."
LORA_SUFFIXES: dict[str, tuple[Literal["A", "B"], Literal["linear", "embedding"]]] = {
    ".lora_A.weight": ("A", "linear"),
    ".lora_B.weight": ("B", "linear"),
    ".lora_embedding_A": ("A", "embedding"),
    ".lora_embedding_B": ("B", "embedding"),
}
# A module's name or its last parts. With no other character, a match takes no time to speak of.
PLAIN_KEY = re.compile(r"\^?(?:[A-Za-z0-9_.]|\\\.){1,256}")


def validate(
    folder: Path, architecture: Architecture, limits: Limits, force: bool = False
) -> AdapterVersion:
    """Check the adapter in `folder` against the base model. It blocks: call it in a thread.

    With `force`, the adapter may declare another base model; everything else is checked all the
    same.

    Raises:
        AdapterRejected: the first thing that is wrong, and what to do.
        AdapterTooLarge: adapter_config.json is above 1 MiB.
    """
    config = _read_config(folder / CONFIG_FILE)
    peft_type = _check_type(config)
    base_model = _check_base_model(config, architecture, force=force)
    if peft_type == "LORA":
        lora = _read_lora(config, architecture, limits)
        with _open_weights(folder / WEIGHTS_FILE) as weights:
            ranks = _check_lora_weights(weights, lora, architecture)
        return AdapterVersion(
            digest=digest_of(folder),
            kind="lora",
            size_bytes=_size_of(folder),
            base_model=base_model,
            rank=max(ranks.values()),
            target_modules=tuple(sorted({module.rpartition(".")[2] for module in ranks})),
        )
    num_virtual_tokens = _read_soft_prompt(config, architecture, limits)
    with _open_weights(folder / WEIGHTS_FILE) as weights:
        _check_soft_prompt_weights(weights, (num_virtual_tokens, architecture.hidden_size))
    return AdapterVersion(
        digest=digest_of(folder),
        kind="soft_prompt",
        size_bytes=_size_of(folder),
        base_model=base_model,
        num_virtual_tokens=num_virtual_tokens,
    )


def digest_of(folder: Path) -> str:
    """The version of an adapter: the SHA-256 of its files, in hexadecimal.

    It is taken over adapter_config.json and then adapter_model.safetensors, of each: its name in
    ASCII, a zero byte, its length in bytes as 8 bytes with the highest first, and its content.
    """
    digest = hashlib.sha256()
    for name in sorted(FILES):
        with _open_file(folder / name) as file:
            digest.update(name.encode() + b"\0" + (folder / name).stat().st_size.to_bytes(8, "big"))
            while chunk := file.read(READ_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


def _size_of(folder: Path) -> int:
    return sum((folder / name).stat().st_size for name in FILES)


def _open_file(file: Path) -> BinaryIO:
    try:
        return file.open("rb")
    except OSError as error:
        raise AdapterRejected(f"{file.name} is missing: send it with the other file") from error


# The configuration.


def _read_config(file: Path) -> Config:
    with _open_file(file) as opened:
        content = opened.read(MAX_CONFIG_BYTES + 1)
    if len(content) > MAX_CONFIG_BYTES:
        raise AdapterTooLarge(
            f"{CONFIG_FILE} is above the limit of {MAX_CONFIG_BYTES:,} bytes: send the file that "
            "PEFT's save_pretrained writes"
        )
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise AdapterRejected(f"{CONFIG_FILE} is not UTF-8: send it as PEFT writes it") from error
    try:
        config = json.loads(text, parse_constant=_refuse_number, parse_float=_finite_number)
    except RecursionError as error:
        raise AdapterRejected(TOO_DEEP) from error
    except ValueError as error:
        raise AdapterRejected(f"{CONFIG_FILE} is not JSON: send it as PEFT writes it") from error
    if not isinstance(config, dict):
        raise AdapterRejected(f"{CONFIG_FILE} is not a JSON object: send it as PEFT writes it")
    _check_nesting(config)
    return config


# The engine reads the file again, on a stack of its own.
TOO_DEEP = f"{CONFIG_FILE} is nested more than {MAX_NESTING} deep: send it as PEFT writes it"


def _check_nesting(config: Config) -> None:
    level: list[Any] = [config]
    for _ in range(MAX_NESTING):
        inner = [value.values() if isinstance(value, dict) else value for value in level]
        level = [value for values in inner for value in values if isinstance(value, dict | list)]
        if not level:
            return
    raise AdapterRejected(TOO_DEEP)


def _refuse_number(text: str) -> NoReturn:
    raise AdapterRejected(f"{CONFIG_FILE} holds {shown(text)}: every number in it must be finite")


def _finite_number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        _refuse_number(text)
    return number


def _check_type(config: Config) -> str:
    peft_type = config.get("peft_type")
    if peft_type == "PREFIX_TUNING":
        raise AdapterRejected(
            "prefix tuning needs keys and values for every layer put into the KV cache, which vLLM "
            "has no place for: train with PROMPT_TUNING, P_TUNING or LORA instead"
        )
    if peft_type != "LORA" and peft_type not in SOFT_PROMPT_TYPES:
        raise _wrong_field("peft_type", peft_type, "LORA, PROMPT_TUNING or P_TUNING")
    task_type = config.get("task_type")
    if task_type not in (None, "CAUSAL_LM"):
        raise _wrong_field("task_type", task_type, "CAUSAL_LM, because this server generates text")
    if config.get("modules_to_save"):
        raise AdapterRejected(
            f"{CONFIG_FILE} sets modules_to_save, but the base model's own weights are shared by "
            "all: train with modules_to_save=None"
        )
    return str(peft_type)


def _check_base_model(config: Config, architecture: Architecture, *, force: bool) -> str | None:
    declared = config.get("base_model_name_or_path")
    # PEFT writes an empty name for a model that was made in memory.
    if declared is None or declared == "":
        return None
    if not isinstance(declared, str) or not _is_plain(declared):
        raise _wrong_field("base_model_name_or_path", declared, "a name, a path or null")
    last_part = re.split(r"[/\\]", declared.rstrip("/\\"))[-1]
    if not force and last_part.lower() not in {name.lower() for name in architecture.names}:
        raise AdapterRejected(
            f"the adapter was trained on {shown(declared)} and this server runs "
            f"{' or '.join(sorted(architecture.names))}: send it to a server of its base model, or "
            "with force=true if the two are the same"
        )
    return declared


def _is_plain(text: str) -> bool:
    """Whether it can be shown in a terminal and written as UTF-8."""
    return len(text) <= MAX_NAME_LENGTH and text.isprintable()


def _wrong_field(field: str, found: object, expected: str) -> AdapterRejected:
    return AdapterRejected(f"{CONFIG_FILE} has {field} {shown(found)}; expected {expected}")


def _positive_integer(field: str, value: object) -> int:
    if type(value) is not int or value <= 0:
        raise _wrong_field(field, value, "a positive integer")
    return value


def _number(field: str, value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        # A long integer does not fit into a float; a float is finite since it was parsed.
        with suppress(OverflowError):
            return float(value)
    raise _wrong_field(field, value, "a finite number")


# LoRA.


@dataclass(frozen=True, slots=True)
class _Pattern:
    """A key of rank_pattern or alpha_pattern with its value, by PEFT's rule and the engine's."""

    matches: re.Pattern[str]
    value: float


@dataclass(frozen=True, slots=True)
class _LoRA:
    """`target_modules` is None where it is a pattern; a `partial` LoRA leaves modules out."""

    rank: int
    alpha: float
    use_rslora: bool
    target_modules: list[str] | None
    partial: bool
    ranks: list[_Pattern]
    alphas: list[_Pattern]

    def rank_of(self, module: str) -> int:
        return int(_first_match(self.ranks, module, self.rank))

    def scaling_of(self, module: str) -> float:
        rank = self.rank_of(module)
        alpha = _first_match(self.alphas, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def _first_match(patterns: list[_Pattern], module: str, default: float) -> float:
    matching = (pattern.value for pattern in patterns if pattern.matches.match(module))
    return next(matching, default)


def _read_lora(config: Config, architecture: Architecture, limits: Limits) -> _LoRA:
    if architecture.no_loras is not None:
        raise AdapterRejected(f"no LoRA can be added: {architecture.no_loras}")
    _check_lora_features(config)
    ranks = _read_patterns(config, "rank_pattern", architecture)
    alphas = _read_patterns(config, "alpha_pattern", architecture)
    lora = _LoRA(
        rank=_positive_integer("r", config.get("r")),
        alpha=_number("lora_alpha", config.get("lora_alpha")),
        use_rslora=config.get("use_rslora") is True,
        target_modules=_read_target_modules(config.get("target_modules")),
        partial=bool(config.get("exclude_modules"))
        or config.get("layers_to_transform") not in (None, []),
        ranks=[
            _Pattern(_plain_pattern("rank_pattern", key), _positive_integer("rank_pattern", rank))
            for key, rank in ranks.items()
        ],
        alphas=[
            _Pattern(_plain_pattern("alpha_pattern", key), _number("alpha_pattern", alpha))
            for key, alpha in alphas.items()
        ],
    )
    rank = max([lora.rank, *(int(pattern.value) for pattern in lora.ranks)])
    if rank > limits.max_lora_rank:
        raise AdapterRejected(
            f"the LoRA has rank {shown(rank)} and the limit is {limits.max_lora_rank}: train with "
            "a lower r, or start the server with a higher --max-lora-rank"
        )
    return lora


def _check_lora_features(config: Config) -> None:
    for field, advice in UNSUPPORTED_IN_LORA.items():
        if config.get(field):
            raise AdapterRejected(f"{CONFIG_FILE} sets {field}, but {advice}")
    if config.get("bias", "none") != "none":
        raise _wrong_field("bias", config["bias"], "'none', because the engine adds no biases")
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower() not in INIT_LORA_WEIGHTS:
        raise AdapterRejected(
            f"{CONFIG_FILE} has init_lora_weights {shown(init)}, which changes the base model's "
            "weights: save the adapter with path_initial_model_for_weight_conversion, or train "
            "with init_lora_weights=True"
        )
    if init is not None and not isinstance(init, str | bool):
        raise _wrong_field("init_lora_weights", init, "true, false or a name")
    if not isinstance(config.get("use_rslora"), bool | None):
        raise _wrong_field("use_rslora", config["use_rslora"], "true or false")


def _read_target_modules(value: object) -> list[str] | None:
    """None for a regular expression, which is not run: the tensors tell what it matched."""
    if isinstance(value, str):
        return None
    if isinstance(value, list) and value and all(isinstance(target, str) for target in value):
        return value
    raise _wrong_field("target_modules", value, "a list of names, or one pattern")


def _read_patterns(config: Config, field: str, architecture: Architecture) -> Mapping[str, object]:
    patterns = config.get(field)
    if patterns is None:
        return {}
    if not isinstance(patterns, dict):
        raise _wrong_field(field, patterns, "an object of module names")
    if len(patterns) > len(architecture.modules):
        raise AdapterRejected(
            f"{field} has {len(patterns):,} keys, and the base model {len(architecture.modules):,} "
            "modules: leave out those that match nothing"
        )
    return patterns


def _plain_pattern(field: str, key: str) -> re.Pattern[str]:
    """A key as PEFT and the engine match it: at the end of a module's name, after a dot."""
    if PLAIN_KEY.fullmatch(key) is None:
        raise AdapterRejected(
            f"{field} has the key {shown(key)}, a regular expression, which is not run because it "
            "can take forever: write the names of modules, or their last parts"
        )
    return re.compile(rf"(.*\.)?({key})$")


def _check_lora_weights(weights: Any, lora: _LoRA, architecture: Architecture) -> dict[str, int]:
    """The rank of every module that the LoRA adapts."""
    found: dict[str, set[str]] = {}
    for name in weights.keys():  # noqa: SIM118 (it is no mapping)
        module, half = _parse_tensor_name(name, architecture)
        found.setdefault(module, set()).add(half)
    if not found:
        raise AdapterRejected(f"{WEIGHTS_FILE} has no tensors: train the adapter before saving it")
    for module, halves in found.items():
        if len(halves) == 1:
            missing = "B" if "A" in halves else "A"
            raise AdapterRejected(
                f"module {shown(module)} has no lora_{missing}: save the adapter again"
            )
    _check_targets(lora, found, architecture)
    for module in found:
        _check_pair(weights, module, lora, architecture.modules[module])
    return {module: lora.rank_of(module) for module in found}


def _parse_tensor_name(name: str, architecture: Architecture) -> tuple[str, str]:
    """The module of a tensor, and which half of a pair it is."""
    for suffix, (half, kind) in LORA_SUFFIXES.items():
        if name.startswith(LORA_PREFIX) and name.endswith(suffix):
            module = name.removeprefix(LORA_PREFIX).removesuffix(suffix)
            shape = architecture.modules.get(module)
            if shape is None:
                raise AdapterRejected(
                    f"tensor {shown(name)} is for a module that the base model does not have: "
                    "check which base model the adapter was trained on"
                )
            if shape.kind != kind:
                raise AdapterRejected(
                    f"tensor {shown(name)} is for {_A_OR_AN[kind]} module, and in the base model "
                    f"it is {_A_OR_AN[shape.kind]} one: check which base model it was trained on"
                )
            return module, half
    if _is_base_copy(name, architecture):
        raise AdapterRejected(
            f"tensor {shown(name)} is a copy of the base model's own weights: save the adapter "
            "with save_embedding_layers=False"
        )
    raise AdapterRejected(
        f"tensor {shown(name)} is not of a LoRA, whose tensors are called "
        f"{LORA_PREFIX}MODULE.lora_A.weight and lora_B.weight: save it with PEFT's save_pretrained"
    )


_A_OR_AN = {"linear": "a linear", "embedding": "an embedding"}


def _is_base_copy(name: str, architecture: Architecture) -> bool:
    module = name.removeprefix(LORA_PREFIX).removesuffix(".weight").removesuffix(".base_layer")
    is_embedding = module.rpartition(".")[2] in ("embed_tokens", "lm_head")
    return name.endswith(".weight") and (module in architecture.modules or is_embedding)


def _check_targets(lora: _LoRA, found: Collection[str], architecture: Architecture) -> None:
    """`target_modules` and the tensors name the same modules, by PEFT's rule: the last parts."""
    if lora.target_modules is None:
        return
    targets = set(lora.target_modules)
    matched = set().union(*map(_last_parts, found))
    for target in lora.target_modules:
        if target not in matched:
            raise AdapterRejected(
                f"target_modules names {shown(target)}, for which there are no tensors: save the "
                "adapter again, or leave it out of target_modules"
            )
    for module in found:
        if targets.isdisjoint(_last_parts(module)):
            raise AdapterRejected(
                f"there are tensors for module {shown(module)}, which target_modules does not "
                "name: save the adapter again"
            )
    for module in () if lora.partial else architecture.modules:
        if module not in found and not targets.isdisjoint(_last_parts(module)):
            raise AdapterRejected(
                f"there are no tensors for module {shown(module)}, which target_modules names: "
                "save the adapter again"
            )


def _last_parts(module: str) -> set[str]:
    parts = module.split(".")
    return {".".join(parts[start:]) for start in range(len(parts))}


def _check_pair(weights: Any, module: str, lora: _LoRA, shape: ModuleShape) -> None:
    rank = lora.rank_of(module)
    half_a, half_b = (
        f"{LORA_PREFIX}{module}{suffix}"
        for suffix, (_, kind) in LORA_SUFFIXES.items()
        if kind == shape.kind
    )
    _read_tensor(weights, half_a, (rank, shape.in_features), "(rank, in_features)")
    tensor = _read_tensor(weights, half_b, (shape.out_features, rank), "(out_features, rank)")
    # The engine multiplies B by this when it loads it.
    if not float(tensor.abs().max()) * abs(lora.scaling_of(module)) <= MAX_FP32:
        raise AdapterRejected(
            f"tensor {shown(half_b)} is infinite once it is scaled by lora_alpha / rank: lower "
            "lora_alpha"
        )


# Soft prompts.


def _read_soft_prompt(config: Config, architecture: Architecture, limits: Limits) -> int:
    """The number of virtual tokens."""
    if architecture.no_soft_prompts is not None:
        raise AdapterRejected(f"no soft prompt can be added: {architecture.no_soft_prompts}")
    num_virtual_tokens = _positive_integer("num_virtual_tokens", config.get("num_virtual_tokens"))
    if num_virtual_tokens > limits.max_virtual_tokens:
        raise AdapterRejected(
            f"the soft prompt has {shown(num_virtual_tokens)} virtual tokens and the limit is "
            f"{limits.max_virtual_tokens}: train with fewer, or start the server with a higher "
            "--max-virtual-tokens"
        )
    token_dim = config.get("token_dim")
    if token_dim is not None and not _is_integer(token_dim, architecture.hidden_size):
        expected = f"{architecture.hidden_size}, the base model's hidden size"
        raise _wrong_field("token_dim", token_dim, expected)
    submodules = config.get("num_transformer_submodules")
    if submodules is not None and not _is_integer(submodules, 1):
        raise _wrong_field("num_transformer_submodules", submodules, "1, as of a causal LM")
    return num_virtual_tokens


def _is_integer(value: object, expected: int) -> bool:
    return type(value) is int and value == expected


def _check_soft_prompt_weights(weights: Any, shape: tuple[int, int]) -> None:
    names = list(weights.keys())
    for name in names:
        if name != SOFT_PROMPT_TENSOR:
            raise AdapterRejected(
                f"tensor {shown(name)} is not of a soft prompt, which has {SOFT_PROMPT_TENSOR} "
                "alone: save it with PEFT's save_pretrained and save_embedding_layers=False"
            )
    if not names:
        raise AdapterRejected(f"{WEIGHTS_FILE} has no tensors: train the adapter before saving it")
    _read_tensor(weights, SOFT_PROMPT_TENSOR, shape, "(num_virtual_tokens, hidden_size)")


# The tensors.


@contextmanager
def _open_weights(file: Path) -> Iterator[Any]:
    """A safetensors file, of which only the header has been read."""
    from safetensors import SafetensorError, safe_open

    _check_header_length(file)
    try:
        weights = safe_open(file, framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise AdapterRejected(NOT_SAFETENSORS) from error
    with weights:
        yield weights


NOT_SAFETENSORS = (
    f"{WEIGHTS_FILE} is not a safetensors file, or it is damaged or cut short: send it again, or "
    "save the adapter again"
)


def _check_header_length(file: Path) -> None:
    """A safetensors file starts with its header's length in 8 bytes, the lowest first."""
    with _open_file(file) as opened:
        start = opened.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > file.stat().st_size - 8:
        raise AdapterRejected(NOT_SAFETENSORS)
    if length > MAX_HEADER_BYTES:
        raise AdapterTooLarge(
            f"{WEIGHTS_FILE} has a header of {length:,} bytes and the limit is "
            f"{MAX_HEADER_BYTES:,}: save the adapter again"
        )


def _read_tensor(weights: Any, name: str, expected: tuple[int, int], meaning: str) -> Any:
    """A tensor of torch, of the expected shape and finite."""
    described = weights.get_slice(name)
    shape, dtype = tuple(described.get_shape()), described.get_dtype()
    if shape != expected:
        raise AdapterRejected(
            f"tensor {shown(name)} has the shape {shown(shape)}; expected {expected}, which is "
            f"{meaning}: check {CONFIG_FILE} and which base model the adapter was trained on"
        )
    if dtype not in DTYPES:
        raise AdapterRejected(
            f"tensor {shown(name)} is {dtype}; expected F32, F16 or BF16: save it as one of them"
        )
    tensor = weights.get_tensor(name)
    if not tensor.isfinite().all():
        what = "NaN" if tensor.isnan().any() else "an infinite number"
        raise AdapterRejected(
            f"tensor {shown(name)} holds {what}: training went wrong, go back to a checkpoint "
            "before that"
        )
    return tensor
