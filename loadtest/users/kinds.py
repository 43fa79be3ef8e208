"""The user classes that only ask: each asks for something else."""

import random
from collections.abc import Iterator
from itertools import cycle, islice

from locust.contrib.fasthttp import ResponseContextManager

from loadtest.options import Range
from loadtest.users.asking import AskingUser, Load
from loadtest.users.questions import Names, Question, random_words
from loadtest.users.received import Received
from softserve.schema.templates import OUTPUT, Example, Template

# A client leaves after so many events of its answer.
MIN_EVENTS, MAX_EVENTS = 1, 8
MAX_SHOTS = 4


class BaseUser(AskingUser):
    """The base model."""

    weight = 2

    @classmethod
    def choices(cls, load: Load) -> list[Names]:
        return [{}]


class WholeAnswerUser(BaseUser):
    """The base model, without streaming."""

    weight = 1
    streams = False


class LongPromptUser(BaseUser):
    """The base model, with long prompts: they hold up everybody's next token."""

    weight = 1

    @classmethod
    def question(cls, load: Load, names: Names) -> Question:
        # A word is about a token; half of the context window is enough for any tokenizer.
        most = load.targets.info.context_window // 2
        words = load.options.long_prompt_words
        words = Range(min(words.low, most), min(words.high, most))
        return random_words(words, load.options.new_tokens, names)


class LeavingUser(BaseUser):
    """The base model, by clients that leave before their answer has ended."""

    weight = 1

    def events(self, response: ResponseContextManager) -> Iterator[bytes]:
        """The first ones. The connection is closed with the others unread."""
        yield from islice(super().events(response), random.randint(MIN_EVENTS, MAX_EVENTS))
        response.stream.release()

    def has_left(self, received: Received) -> bool:
        return not received.has_ended


class OneAdapterUser(AskingUser):
    """The first LoRA."""

    @classmethod
    def choices(cls, load: Load) -> list[Names]:
        return [{"adapter": each.name} for each in load.targets.adapters[:1]]


class AdapterMixUser(AskingUser):
    """All LoRAs, shared by --mix."""

    weight = 4

    @classmethod
    def choices(cls, load: Load) -> list[Names]:
        return [{"adapter": each.name} for each in load.targets.adapters]

    def in_order(self, choices: list[Names]) -> Iterator[Names]:
        return self.load.options.mix.choices(choices)


class SoftPromptUser(AskingUser):
    """All soft prompts, one after the other."""

    @classmethod
    def choices(cls, load: Load) -> list[Names]:
        return [{"soft_prompt": each.name} for each in load.targets.soft_prompts]


class LoraAndSoftPromptUser(AskingUser):
    """A LoRA and a soft prompt in one request: every LoRA, one after the other."""

    @classmethod
    def choices(cls, load: Load) -> list[Names]:
        # Without soft prompts there are no pairs.
        pairs = zip(load.targets.adapters, cycle(load.targets.soft_prompts), strict=False)
        return [{"adapter": lora.name, "soft_prompt": prompt.name} for lora, prompt in pairs]


class FewShotUser(AskingUser):
    """Templates, with 0 to 4 shots; one with labels is asked for their probabilities too."""

    @classmethod
    def choices(cls, load: Load) -> list[Names]:
        return [{"template": each.name} for each in load.targets.templates]

    @classmethod
    def question(cls, load: Load, names: Names) -> Question:
        template = load.targets.template(names["template"])
        shots = random.randint(0, MAX_SHOTS)
        return _few_shot(names, template, random.choice(template.examples), shots)

    @classmethod
    def compared_question(cls, load: Load, names: Names) -> Question:
        template = load.targets.template(names["template"])
        return _few_shot(names, template, template.examples[-1], shots=1, is_compared=True)


def _few_shot(
    names: Names, template: Template, example: Example, shots: int, is_compared: bool = False
) -> Question:
    """Asks for what an example has the answer to."""
    inputs = {name: value for name, value in example.items() if name != OUTPUT}
    return Question(
        {**names, "inputs": inputs, "shots": shots},
        "/icl/generate",
        is_compared,
        labels=tuple(template.labels),
    )
