"""`softserve template`: show and change the prompt templates of a running server."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.cli.console import DEFAULT_URL, AdminKey, Url, telling_failures
from app.errors import TemplateRejected
from app.templates.source import read_template
from softserve.client import PATIENT, Client, ClientError
from softserve.schema.fields import SHOWN_DIGITS, name_refusal
from softserve.schema.templates import TemplateList, TemplateOut

Name = Annotated[str, typer.Argument(help="The template's name.")]

templates = typer.Typer(
    name="template",
    help="Show and change the prompt templates of a running server.",
    no_args_is_help=True,
)


@templates.command("list")
def list_templates(url: Url = DEFAULT_URL, admin_key: AdminKey = None) -> None:
    """List the templates."""
    with telling_failures():
        answer = Client(url, admin_key).get("/icl/templates", TemplateList)
    table = Table(box=SIMPLE_HEAD, show_edge=False)
    for name in ("name", "live", "versions", "examples", "description"):
        table.add_column(name)
    for each in answer.templates:
        table.add_row(
            each.name,
            each.live[:SHOWN_DIGITS] if each.live else "not served",
            f"{len(each.versions)}",
            f"{each.num_examples}",
            Text((each.rejected and f"rejected: {each.rejected}") or each.description),
        )
    Console(highlight=False).print(table)


@templates.command()
def show(name: Name, url: Url = DEFAULT_URL, admin_key: AdminKey = None) -> None:
    """Show a template's content, as JSON, and its versions."""
    with telling_failures():
        answer = Client(url, admin_key).get(_path(name), TemplateOut)
    typer.echo(answer.model_dump_json(indent=2, exclude_unset=True))


@templates.command()
def add(
    name: Name,
    file: Annotated[Path, typer.Argument(help="A .yaml file.")],
    url: Url = DEFAULT_URL,
    admin_key: AdminKey = None,
) -> None:
    """Add a template, or a new version of one; the JSONL file that it names goes with it."""
    with telling_failures():
        path, body = _path(name), _read(file)
        answer = Client(url, admin_key).put(path, body, TemplateOut)
    typer.echo(f"{name} is live: version {(answer.live or '')[:SHOWN_DIGITS]}.")


@templates.command()
def rollback(
    name: Name,
    version: Annotated[
        str | None, typer.Option(help="At least six digits; else the one before the live one.")
    ] = None,
    url: Url = DEFAULT_URL,
    admin_key: AdminKey = None,
) -> None:
    """Make an older version live again."""
    with telling_failures():
        body = {} if version is None else {"version": version}
        client = Client(url, admin_key)
        answer = client.post(f"{_path(name)}/rollback", body, TemplateOut, PATIENT)
    typer.echo(f"{name} is live: version {(answer.live or '')[:SHOWN_DIGITS]}.")


@templates.command()
def remove(name: Name, url: Url = DEFAULT_URL, admin_key: AdminKey = None) -> None:
    """Remove a template with its versions."""
    with telling_failures():
        Client(url, admin_key).delete(_path(name))
    typer.echo(f"{name} is removed.")


def _path(name: str) -> str:
    if refusal := name_refusal("a template", name):
        raise ClientError(refusal)
    return f"/icl/templates/{name}"


def _read(file: Path) -> dict[str, Any]:
    """The fields of a template on this machine."""
    try:
        template = read_template(file)
    except OSError as error:
        raise ClientError(f"{file} cannot be read ({error.strerror})") from None
    except TemplateRejected as error:
        raise ClientError(f"{file} is no template: {error.message}") from None
    return template.model_dump(mode="json", exclude_defaults=True)
