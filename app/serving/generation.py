"""What a request runs with, and how its prompts were made; none of it changes on the way."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Generic, TypeVar

from app.adapters.registry import Adapters
from app.engine.generation import GenerationRequest
from app.engine.protocol import Prompt
from app.serving.ledger import Ledger
from app.templates.compilation import ExampleSet
from app.templates.labels import LabelScore
from app.templates.registry import ResolvedTemplate

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FewShotPrompt:
    """A prompt as the model gets it: `text` is what its tokens were made from.

    `shown` are the indices of the examples in it, in its order; `dropped` of those that were chosen
    and did not fit. `continuations` are the labels as they follow the text.
    """

    prompt: Prompt
    text: str
    shown: tuple[int, ...]
    dropped: tuple[int, ...]
    continuations: tuple[str, ...]
    labels: tuple[LabelScore, ...] = ()


@dataclass(frozen=True, slots=True)
class FewShotPrompts:
    """The prompts of a request, the template, and the examples that there were to choose from."""

    template: ResolvedTemplate
    examples: ExampleSet
    num_shots: int
    prompts: tuple[FewShotPrompt, ...]


@dataclass(frozen=True, slots=True)
class Generation(Generic[T]):
    """A request that runs, and what its reader gets, as it comes.

    `few_shot` is there where a template made its prompts.
    """

    request: GenerationRequest
    model: str
    adapters: Adapters
    ledger: Ledger
    items: AsyncGenerator[T]
    few_shot: FewShotPrompts | None = None
