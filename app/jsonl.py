"""JSON Lines: one value a line, in UTF-8. A line ends at a line feed, or a carriage return and one.

What Python calls lines of a text end at more: at U+2028, U+0085 and a form feed, which a text may
hold.
"""

import codecs
import json
from collections.abc import Iterator
from typing import Any

JSON_WHITESPACE = b" \t\r\n"


class NotJson(ValueError):
    """Why a line cannot be read, as the end of `line 3 is ...`."""


def lines_of(content: bytes) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers, from 1."""
    for number, line in enumerate(content.removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        if line.strip(JSON_WHITESPACE):
            yield number, line


def value_of(line: bytes) -> Any:
    """The value in a line. Raises `NotJson`."""
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise NotJson("not UTF-8") from error
    except json.JSONDecodeError as error:
        raise NotJson(f"not JSON ({error.msg}, column {error.colno})") from error
    except (ValueError, RecursionError) as error:
        raise NotJson("not JSON that can be read") from error
