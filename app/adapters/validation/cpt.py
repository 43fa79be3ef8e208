"""CPT: rows that were trained from the embeddings of a text (https://arxiv.org/abs/2410.17222).

By PEFT's code (its tuners/cpt/model.py, and `_get_adapter_state_dict` of its tuners_utils.py), what
is saved are the rows with all that was learned added to them, and projected: a soft prompt.
"""

from typing import Self

from pydantic import model_validator

from app.adapters.archive import shown
from app.adapters.validation.config import ABSENT, SoftPromptConfig, TokenNumbers, wrong_field

LISTS = ("cpt_token_ids", "cpt_mask", "cpt_tokens_type_mask")


class CPTConfig(SoftPromptConfig):
    """The lists have a number for each virtual token. They are of use in training alone."""

    cpt_token_ids: TokenNumbers = ABSENT
    cpt_mask: TokenNumbers | None = None
    cpt_tokens_type_mask: TokenNumbers | None = None

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        for field in LISTS:
            numbers = getattr(self, field)
            if numbers is not None and len(numbers) != self.num_virtual_tokens:
                num_virtual_tokens = shown(self.num_virtual_tokens)
                expected = f"as many numbers as num_virtual_tokens, {num_virtual_tokens}"
                raise wrong_field(field, numbers, expected)
        return self
