"""What the tensors of a file are called, and what they are: PEFT's names below all wrappers."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from app.adapters.archive import shown
from app.engine.protocol import Architecture, ModuleShape
from app.errors import AdapterRejected

PREFIX = "base_model.model."
# Missing, doubled, or cut short.
PREFIXES = (PREFIX, "base_model.")
# What training frameworks put around a module: torch.compile, FSDP, checkpointing, DeepSpeed.
WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
# DistributedDataParallel's, and what a multimodal model calls its text model: where the model's own
# name has no such part.
OUTER = {"module", "language_model"}
MAGNITUDE = "lora_magnitude_vector"
# What is around the parts that all modules share.
OUTSIDE = {*WRAPPERS, *OUTER, "base_model", ""}
# What PEFT has of an adapted module, in the names of its types' tensors.
PARTS = (
    "lora_A",
    "lora_B",
    "lora_E",
    "lora_embedding_A",
    "lora_embedding_B",
    MAGNITUDE,
    "miss_block",
    "bone_block",
    "vera_lambda_b",
    "vera_lambda_d",
    "vblora_logits_A",
    "vblora_logits_A_topk_indices",
    "vblora_logits_A_topk_weights",
    "vblora_logits_B",
    "vblora_logits_B_topk_indices",
    "vblora_logits_B_topk_weights",
    "pvera_lambda_b",
    "pvera_lambda_d",
    "delora_A",
    "delora_B",
    "delora_lambda",
    "delora_w_norm",
    "gralora_A",
    "gralora_B",
    "gralora_A_general",
    "gralora_B_general",
    "hada_w1_a",
    "hada_w1_b",
    "hada_w2_a",
    "hada_w2_b",
    "lokr_w1",
    "lokr_w1_a",
    "lokr_w1_b",
    "lokr_w2",
    "lokr_w2_a",
    "lokr_w2_b",
    # Rows of an embedding, by the option of a LoRA and by the type of its own.
    "token_adapter.trainable_tokens_delta",
    "trainable_tokens_delta",
)
# What all modules of an adapter share: its name has no module.
SHARED_PREFIX = "base_model."
SHARED_PARTS = ("vera_A", "vera_B", "pvera_A", "pvera_B", "vblora_vector_bank")
SHARED_PART = re.compile(
    rf"(?P<outer>(?:[^.]+\.)*)(?P<part>{'|'.join(SHARED_PARTS)})(?:\.(?P<adapter>[^.]+))?"
)
PART = re.compile(
    rf"(?P<module>.+?)\.(?P<part>{'|'.join(PARTS)})(?:\.(?P<adapter>(?!weight$)[^.]+))?(?P<weight>\.weight)?"
)

HALVES = {
    "linear": ("lora_A.weight", "lora_B.weight"),
    "embedding": ("lora_embedding_A", "lora_embedding_B"),
}


class Tensors:
    """The tensors of an open safetensors file, by the names that they are known by here."""

    def __init__(self, weights: Any, names: Mapping[str, str]) -> None:
        self._weights = weights
        self._names = names

    @property
    def names(self) -> Collection[str]:
        return self._names.keys()

    def get_slice(self, name: str) -> Any:
        return self._weights.get_slice(self._names[name])

    def get_tensor(self, name: str) -> Any:
        return self._weights.get_tensor(self._names[name])

    def without(self, names: Iterable[str]) -> "Tensors":
        left_out = set(names)
        kept = {name: there for name, there in self._names.items() if name not in left_out}
        return Tensors(self._weights, kept)

    @property
    def are_renamed(self) -> bool:
        return any(name != there for name, there in self._names.items())

    @property
    def notes(self) -> Iterator[str]:
        renamed = [(there, name) for name, there in self._names.items() if name != there]
        if renamed:
            there, name = renamed[0]
            yield (
                f"{len(renamed):,} tensors have names with wrappers around PEFT's, and were "
                f"read by PEFT's names: {shown(there)} as {shown(name)}"
            )


def named_as_peft_does(weights: Any, architecture: Architecture) -> Tensors:
    """The tensors by PEFT's names. What is not known stays as it is.

    Raises:
        AdapterRejected: two tensors come to have one name.
    """
    names: dict[str, str] = {}
    adapters: set[str] = set()
    for there in list(weights.keys()):
        name, adapter = _plain_name(there, architecture)
        if name in names:
            raise AdapterRejected(
                f"tensors {shown(names[name])} and {shown(there)} are both for {shown(name)}: save "
                "one adapter at a time, with PEFT's save_pretrained"
            )
        names[name] = there
        if adapter:
            adapters.add(adapter)
    if len(adapters) > 1:
        raise AdapterRejected(
            f"its tensors are of several adapters ({', '.join(map(shown, sorted(adapters)))}): "
            "save one at a time, with PEFT's save_pretrained"
        )
    return Tensors(weights, names)


def module_of(name: str, architecture: Architecture) -> str | None:
    """The model's module that a wrapped name can only mean."""
    unwrapped = ".".join(part for part in name.split(".") if part not in WRAPPERS)
    inside = ".".join(part for part in unwrapped.split(".") if part not in OUTER)
    for candidate in (unwrapped, inside):
        for prefix in PREFIXES:
            inner = candidate.rpartition(prefix)[2]
            if inner in architecture.modules:
                return inner
    return None


def names_of(module: str, shape: ModuleShape) -> list[str]:
    """Of the two tensors of a LoRA."""
    return [f"{PREFIX}{module}.{half}" for half in HALVES[shape.kind]]


def _plain_name(name: str, architecture: Architecture) -> tuple[str, str | None]:
    """The name by PEFT's rule, and the adapter that is named in it."""
    shared = SHARED_PART.fullmatch(name)
    if shared is not None and OUTSIDE.issuperset(shared["outer"].split(".")):
        return f"{SHARED_PREFIX}{shared['part']}", shared["adapter"]
    match = PART.fullmatch(name)
    module = None if match is None else module_of(match["module"], architecture)
    if match is None or module is None:
        return name, None
    # PEFT keeps a magnitude in a layer of its own, and saves it without that.
    end = "" if match["part"] == MAGNITUDE else match["weight"] or ""
    return f"{PREFIX}{module}.{match['part']}{end}", match["adapter"]
