"""adapter_config.json, as PEFT writes it: the fields that the server or the engine goes by.

PEFT writes many more, which are ignored.
"""

import json
import math
from codecs import BOM_UTF8
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from app.adapters.archive import shown
from app.errors import AdapterRejected
from softserve.schema.adapters import CONFIG_FILE

T = TypeVar("T")

# The engine reads the file again, on a stack of its own.
MAX_NESTING = 100
TOO_DEEP = f"nested more than {MAX_NESTING} deep"
MAX_NAME_LENGTH = 1000
# By PEFT's code (its tuners/lora/layer.py): what each does to the base model's own weights, when a
# LoRA is made or when its training starts.
INITS_BESIDE_THE_BASE = ("gaussian", "eva", "orthogonal", "mica")
INITS_THAT_PEFT_CONVERTS = ("pissa", "olora", "corda", "lora_ga")
INITS_THAT_PEFT_DOES_NOT_CONVERT = ("loftq",)


def wrong_field(field: str | None, found: object, expected: str) -> AdapterRejected:
    return AdapterRejected(f"{CONFIG_FILE} has {field} {shown(found)}; expected {expected}")


# The types of fields. An AdapterRejected passes through pydantic as it is.


def _expected(what: str) -> WrapValidator:
    """Refuse a value of another type than the one before this in Annotated: `what` describes it."""

    def check(value: Any, validate: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        try:
            return validate(value)
        except ValidationError as error:
            raise wrong_field(info.field_name, value, what) from error

    return WrapValidator(check)


def _check_name(name: str | None) -> str | None:
    """It can be shown in a terminal and written as UTF-8."""
    if name and (len(name) > MAX_NAME_LENGTH or not name.isprintable()):
        raise ValueError("not a plain name")
    # PEFT writes an empty name for a model that was made in memory.
    return name or None


def _check_init(init: bool | str | None) -> bool | str | None:
    """What PEFT converts on saving has init_lora_weights true from then on."""
    if not isinstance(init, str) or init.lower() in INITS_BESIDE_THE_BASE:
        return init
    what = f"{CONFIG_FILE} has init_lora_weights {shown(init)}, which"
    if init.lower().startswith(INITS_THAT_PEFT_CONVERTS):
        raise AdapterRejected(
            f"{what} changes the base model's weights in training: save the adapter once before "
            "training, and afterwards with path_initial_model_for_weight_conversion=THAT FOLDER, "
            "or train with init_lora_weights=True"
        )
    if init.lower() in INITS_THAT_PEFT_DOES_NOT_CONVERT:
        raise AdapterRejected(
            f"{what} changes the base model's weights, and PEFT cannot convert it: train with "
            "init_lora_weights=True"
        )
    raise AdapterRejected(
        f"{what} this server does not know, so that it may change the base model's weights: train "
        "with init_lora_weights=True"
    )


PositiveInteger = Annotated[int, Field(gt=0), _expected("a positive integer")]
NonNegativeInteger = Annotated[int, Field(ge=0), _expected("0 or a positive integer")]
Integer = Annotated[int, _expected("an integer")]
Flag = Annotated[bool, _expected("true or false")]
# What torch takes for the state of a generator of random numbers.
Seed = Annotated[int, Field(ge=-(1 << 63), lt=1 << 64), _expected("an integer of 64 bits")]
Number = Annotated[float, _expected("a finite number")]
TokenNumbers = Annotated[list[int], _expected("a list of numbers, one for each virtual token")]
ByModule = Annotated[
    dict[str, T],
    BeforeValidator(lambda values: {} if values is None else values),
    _expected("an object of module names"),
]
NamesOrPattern = Annotated[
    str | list[str] | None, _expected("a list of names, one pattern or null")
]
Bias = Annotated[
    Literal["none", "all", "lora_only"] | None, _expected("'none', 'all' or 'lora_only'")
]
# What is absent is checked as null is.
ABSENT: Any = None


class AdapterConfig(BaseModel):
    """What every adapter has. `unsupported` says what to do instead of setting a field."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False, validate_default=True)
    unsupported: ClassVar[dict[str, str]] = {}

    task_type: Annotated[
        Literal["CAUSAL_LM", "SEQ_2_SEQ_LM"] | None,
        _expected("CAUSAL_LM, or SEQ_2_SEQ_LM for an encoder-decoder model: this server generates"),
    ] = None
    base_model_name_or_path: Annotated[
        str | None, AfterValidator(_check_name), _expected("a name, a path or null")
    ] = None

    @model_validator(mode="before")
    @classmethod
    def _check_unsupported(cls, fields: dict[str, Any]) -> dict[str, Any]:
        for field, advice in cls.unsupported.items():
            if fields.get(field):
                raise AdapterRejected(f"{CONFIG_FILE} sets {field}, but {advice}")
        return fields


class TargetedConfig(AdapterConfig):
    """What changes modules. Where `target_modules` is one text, it is a regular expression."""

    # What was trained of the base model itself, if anything, is in the tensors.
    modules_to_save: Annotated[list[str] | None, _expected("a list of names or null")] = None
    target_modules: Annotated[
        str | Annotated[list[str], Field(min_length=1)] | None,
        _expected("a list of names, one pattern or null"),
    ] = None
    exclude_modules: NamesOrPattern = None
    layers_to_transform: Annotated[
        int | list[int] | None, _expected("the number of a layer, or a list of them")
    ] = None
    layers_pattern: NamesOrPattern = None


class LoRAConfig(TargetedConfig):
    """A LoRA."""

    # What PEFT's LoRA has and vLLM has not (its lora/peft_helper.py).
    unsupported: ClassVar[dict[str, str]] = {
        "lora_bias": "the engine adds no bias: train with lora_bias=False",
        "alora_invocation_tokens": "the engine applies a LoRA to every token: train a plain LoRA",
        "layer_replication": "the base model is served with its own layers: train without it",
        "use_bdlora": "block-diagonal LoRA is not supported: train a plain LoRA",
        "use_qalora": "QALoRA is not supported: train with use_qalora=False",
        "target_parameters": "only whole modules can be adapted: use target_modules",
        "megatron_config": "Megatron's layers are not the base model's: train without it",
        "arrow_config": "routing between LoRAs is not supported: train a plain LoRA",
        "kasa_config": "KaSA changes the base model's weights: train a plain LoRA",
        "monteclora_config": "MonteCLoRA samples its weights: train a plain LoRA",
    }

    bias: Bias = None
    init_lora_weights: Annotated[
        bool | str | None, AfterValidator(_check_init), _expected("true, false or a name")
    ] = None
    use_rslora: Annotated[bool | None, _expected("true or false")] = None
    use_dora: Annotated[bool | None, _expected("true or false")] = None
    rank_pattern: ByModule[PositiveInteger] = ABSENT
    alpha_pattern: ByModule[Number] = ABSENT
    trainable_token_indices: Annotated[
        list[int] | dict[str, list[int]] | None,
        _expected("a list of token ids, or an object of such lists by module"),
    ] = None
    # Absent, they are what PEFT takes for them.
    r: PositiveInteger = 8
    lora_alpha: Number = 8


class TrainedTokensConfig(TargetedConfig):
    """The ids of the tokens that have rows of their own, in whichever module."""

    token_indices: Annotated[list[int], Field(min_length=1), _expected("a list of token ids")] = (
        ABSENT
    )


class SoftPromptConfig(AdapterConfig):
    """The rows of a soft prompt: `num_virtual_tokens`, each of `token_dim` numbers."""

    num_virtual_tokens: PositiveInteger = ABSENT
    token_dim: Annotated[int | None, _expected("the base model's hidden size")] = None
    num_transformer_submodules: Annotated[
        Annotated[int, Field(ge=1, le=2)] | None,
        _expected("1, as of a causal LM, or 2, as of an encoder-decoder model"),
    ] = None


def starts_with_bom(file: Path) -> bool:
    """Whether a text begins with a byte order mark, which editors write and the engine refuses."""
    with file.open("rb") as opened:
        return opened.read(len(BOM_UTF8)) == BOM_UTF8


def read_json(file: Path) -> dict[str, Any]:
    """The fields of a configuration. Raises AdapterRejected."""
    try:
        fields = json.loads(
            file.read_text("utf-8-sig"), parse_constant=_finite, parse_float=_finite
        )
        nesting = _nesting(fields)
    except UnicodeDecodeError as error:
        raise _not_of_peft("not UTF-8") from error
    except RecursionError as error:
        raise _not_of_peft(TOO_DEEP) from error
    except ValueError as error:
        raise _not_of_peft("not JSON") from error
    if not isinstance(fields, dict):
        raise _not_of_peft("not a JSON object")
    if nesting > MAX_NESTING:
        raise _not_of_peft(TOO_DEEP)
    return fields


def _not_of_peft(what: str) -> AdapterRejected:
    return AdapterRejected(f"{CONFIG_FILE} is {what}: send it as PEFT writes it")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise AdapterRejected(
            f"{CONFIG_FILE} holds {shown(text)}: every number in it must be finite"
        )
    return number


def _nesting(value: object) -> int:
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(_nesting, value), default=0) if isinstance(value, list) else 0
