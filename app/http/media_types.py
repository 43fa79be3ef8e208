"""The media type of a body, which says how to read it."""

from starlette.datastructures import Headers

FORM = "multipart/form-data"
JSON = "application/json"
YAML = ("application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml")
# What curl and HTML forms say of a body that they know nothing of.
URL_ENCODED = "application/x-www-form-urlencoded"


def media_type(headers: Headers) -> str:
    """In lower case and without parameters; empty where none was sent."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()
