"""What can be asked of a server."""

import random
from dataclasses import dataclass
from typing import Any

from loadtest.options import Range
from loadtest.prompts import WORDS

# The fields of a request that name what has versions; an answer has the same.
VERSIONED = ("adapter", "soft_prompt", "template")
# What a request names: a LoRA, a soft prompt, both, a template, or nothing.
Names = dict[str, str]

COMPARED_PROMPT = "Once upon a time"
NUM_COMPARED_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Question:
    """A request, without whether its answer is to stream, and what is known of its answer."""

    body: dict[str, Any]
    path: str = "/generate"
    # Whether its text is compared with what the version that answers says alone.
    is_compared: bool = False
    num_new_tokens: int | None = None
    labels: tuple[str, ...] = ()

    @property
    def adapter(self) -> str:
        """What it names, as the reports show it."""
        return (
            " + ".join(self.body[each] for each in VERSIONED if each in self.body) or "base model"
        )


def random_words(words: Range, new_tokens: Range, names: Names) -> Question:
    """A prompt like no other."""
    num_words = random.randint(words.low, words.high)
    num_new_tokens = random.randint(new_tokens.low, new_tokens.high)
    return _plain(" ".join(random.choices(WORDS, k=num_words)), num_new_tokens, names)


def the_same_words(names: Names) -> Question:
    """A prompt that is asked alone, too."""
    return _plain(COMPARED_PROMPT, NUM_COMPARED_TOKENS, names, is_compared=True)


def _plain(prompt: str, num_new_tokens: int, names: Names, is_compared: bool = False) -> Question:
    """Greedy, and of exactly so many tokens."""
    body = {"prompt": prompt, "max_new_tokens": num_new_tokens, "ignore_eos": True, **names}
    return Question(body, is_compared=is_compared, num_new_tokens=num_new_tokens)
