"""A stranger's regular expressions, in time that is linear in what they are matched against.

PEFT runs them with Python's `re`, which can take forever. RE2 cannot, and has no look-around and
no back-references for that reason.
"""

import re
from functools import lru_cache
from typing import Any

from app.adapters.archive import shown

MAX_LENGTH = 10_000
# What RE2 takes for something else than `re` does: {,3} for text, [[:alpha:]] for letters.
READ_OTHERWISE = re.compile(r"\{,|\[\[:")


class CannotRun(Exception):
    """RE2 cannot run a pattern as PEFT does; the text is the reason."""


@lru_cache(maxsize=1024)
def compiled(pattern: str) -> Any:
    """What has `fullmatch`. Raises CannotRun."""
    import re2

    if len(pattern) > MAX_LENGTH:
        raise CannotRun(f"it is longer than {MAX_LENGTH:,} characters")
    if READ_OTHERWISE.search(pattern):
        raise CannotRun("RE2 reads {,n} and [[:name:]] otherwise than Python does")
    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        reason = error.args[0]
        text = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        raise CannotRun(f"of {shown(pattern)} RE2 says {shown(text)}") from error
    except UnicodeEncodeError as error:
        raise CannotRun("it is not text") from error


def key_pattern(key: str) -> Any:
    """PEFT's rule for the keys of `rank_pattern` and `alpha_pattern` (its `get_pattern_key`).

    A key matches the last parts of a module's name. Raises CannotRun.
    """
    # Alone first: what closes a group of this rule and opens another is not a pattern.
    compiled(key)
    return compiled(rf"(?:.*\.)?(?:{key})")
