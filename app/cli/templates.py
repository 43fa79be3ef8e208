"""`softserve template`: show and change the prompt templates of a running server."""

from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.canary import Live, add_commands, beside
from app.cli.connection import DEFAULT_URL, Family, Key, Url, Version, connected
from app.cli.console import fail
from app.cli.template_tables import print_templates
from app.errors import TemplateRejected
from app.templates.source import read_template, yaml_of
from softserve.client import PATIENT, Call
from softserve.schema.templates import Template, TemplateList, TemplateOut
from softserve.schema.versions import short

TEMPLATES = Family("a template", "/icl/templates", TemplateOut)

Name = Annotated[str, typer.Argument(help="The template's name.")]

cli = typer.Typer(no_args_is_help=True, add_completion=False)


@cli.command("list")
def list_templates(url: Url = DEFAULT_URL, key: Key = None) -> None:
    """List the templates."""
    with connected(url, key) as client:
        answer = client.send(Call("GET", TEMPLATES.path, TemplateList))
    print_templates(answer.templates)


@cli.command()
def show(
    name: Name,
    as_yaml: Annotated[
        bool, typer.Option("--yaml", help="Only the content, as a file for `template add`.")
    ] = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Show a template's content, as JSON, and its versions."""
    with connected(url, key) as client:
        answer = client.send(TEMPLATES.show(name))
    if as_yaml:
        if answer.template is None:
            raise fail(f"{name} is not served, so it has no content: {answer.rejected}")
        typer.echo(yaml_of(answer.template), nl=False)
        return
    typer.echo(answer.model_dump_json(indent=2, exclude_unset=True))


@cli.command()
def add(
    name: Name,
    file: Annotated[Path, typer.Argument(help="A .yaml file.")],
    live: Live = True,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Add a template, or a new version of one; the JSONL file that it names goes with it."""
    path = TEMPLATES.path_of(name) + ("" if live else "?live=false")
    body = body_of(template_in(file))
    with connected(url, key) as client:
        answer = client.send(Call("PUT", path, TemplateOut, body, PATIENT))
    new = answer.versions[0].version
    if not live and new != answer.live:
        typer.echo(beside("template", answer, new))
        return
    typer.echo(_is_live(answer))


@cli.command()
def rollback(name: Name, version: Version = None, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Make an older version live again."""
    with connected(url, key) as client:
        answer = client.send(TEMPLATES.rollback(name, version))
    typer.echo(_is_live(answer))


@cli.command()
def remove(name: Name, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Remove a template with its versions."""
    with connected(url, key) as client:
        client.send(TEMPLATES.remove(name))
    typer.echo(f"{name} is removed.")


add_commands(cli, TEMPLATES)


def template_in(file: Path) -> Template:
    """The template in a file of this machine; where there is none, the command ends."""
    try:
        return read_template(file)
    except OSError as error:
        raise fail(f"{file} cannot be read ({error.strerror})") from None
    except TemplateRejected as error:
        raise fail(f"{file} is no template: {error.message}") from None


def body_of(template: Template) -> dict[str, Any]:
    """As a request holds it."""
    return template.model_dump(mode="json", exclude_defaults=True)


def _is_live(template: TemplateOut) -> str:
    return f"{template.name} is live: version {short(template.live or '')}."
