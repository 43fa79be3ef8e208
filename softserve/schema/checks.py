"""What `softserve adapter check --json` prints."""

from typing import Literal

from pydantic import BaseModel, Field

from softserve.schema.adapters import AdapterKind, VersionFacts
from softserve.schema.fields import SHOWN_DIGEST

Verdict = Literal["taken", "refused", "differs", "unchecked"]
# 2 is for a command line that cannot be read.
EXIT_CODES: dict[Verdict, int] = {"taken": 0, "refused": 1, "differs": 3, "unchecked": 4}


class CheckedAdapter(VersionFacts):
    """What a server would know of the adapter, had it taken it."""

    version: str = Field(description="The digest of its content.", examples=[SHOWN_DIGEST])
    kind: AdapterKind = Field(description="`lora` or `soft_prompt`.", examples=["lora"])


class Divergence(BaseModel):
    """The first token of a completion that PEFT would not take."""

    position: int = Field(description="Its index among the completion's tokens.", examples=[3])
    token: str = Field(description="softserve's token.", examples=[" the"])
    peft_token: str = Field(description="PEFT's token.", examples=[" a"])
    margin: float | None = Field(
        description="By how much PEFT's token has the higher log probability, as PEFT sees it; "
        "null: one of the two is not a number.",
        examples=[0.41],
    )


class ComparedPrompt(BaseModel):
    """softserve's completion of a prompt, and where PEFT would go another way.

    A difference of log probabilities is of the same token after the same tokens, null where one of
    the two is not a number.
    """

    prompt: str = Field(description="The prompt.")
    prompt_token_ids: list[int] = Field(description="Its tokens.")
    task: int | None = Field(None, description="Of a multitask soft prompt.")
    completion: str = Field(description="What softserve generated, greedily.")
    token_ids: list[int] = Field(description="Its tokens.")
    logprobs: list[float | None] = Field(description="Their log probabilities.")
    divergence: Divergence | None = Field(description="null: PEFT takes the same tokens.")
    largest_difference: float | None = Field(description="The largest one of log probabilities.")
    changed_at: int | None = Field(
        description="The first position where PEFT takes another token with the adapter than "
        "without it; null: nowhere."
    )
    largest_change: float | None = Field(
        description="The largest difference of log probabilities that the adapter makes in PEFT."
    )


class AgainstPeft(BaseModel):
    """softserve's engine compared with transformers and PEFT."""

    equal: bool = Field(description="Whether every difference is within the tolerance.")
    tolerance: float = Field(description="Of log probabilities.", examples=[0.01])
    dtype: str = Field(description="The type of activations on both.", examples=["float32"])
    warning: str | None = Field(description="Why it says little that they are equal.")
    prompts: list[ComparedPrompt] = Field(description="In order.")


class CheckReport(BaseModel):
    """The outcome, also that of a refusal."""

    verdict: Verdict = Field(description="`differs` is of softserve's engine and PEFT.")
    message: str | None = Field(
        None, description="Why it is refused, or what could not be checked and why."
    )
    model: str | None = Field(None, description="The base model.")
    adapter: CheckedAdapter | None = Field(None, description="null where it is refused.")
    against_peft: AgainstPeft | None = Field(None, description="With `--against-peft`.")

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.verdict]
