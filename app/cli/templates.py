"""`softserve template`: show and change the prompt templates of a running server."""

from pathlib import Path
from typing import Annotated

import typer

from app.cli.canary import Live, WaitAll, add_commands, beside, reached, wait_for
from app.cli.connection import DEFAULT_URL, Json, Key, Url, Version, connected, print_json
from app.cli.console import fail, stdout
from app.cli.name_tables import All
from app.cli.template_tables import print_template, templates_view
from app.cli.watching import Watch, show_list
from app.errors import TemplateRejected
from app.templates.source import read_template, yaml_of
from softserve.schema.fields import name_refusal
from softserve.schema.templates import Template, TemplateOut
from softserve.schema.versions import short

Name = Annotated[str, typer.Argument(help="The template's name.")]

cli = typer.Typer(no_args_is_help=True, add_completion=False)


@cli.command("list")
def list_templates(
    with_retired: All = False,
    watched: Watch = False,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """List the templates."""
    console = stdout()
    with connected(url, key) as client:
        show_list(
            client.templates.list,
            lambda answer: templates_view(answer.templates, console, with_retired=with_retired),
            console,
            watched=watched,
            as_json=as_json,
        )


@cli.command()
def show(
    name: Name,
    as_yaml: Annotated[
        bool, typer.Option("--yaml", help="Only the content, as a file for `template add`.")
    ] = False,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Show a template's content, and its versions, newest first."""
    with connected(url, key) as client:
        answer = client.templates.show(name)
    if as_yaml:
        if answer.template is None:
            raise fail(f"{name} is not served, so it has no content: {answer.rejected}")
        typer.echo(yaml_of(answer.template), nl=False)
    elif as_json:
        print_json(answer)
    else:
        print_template(answer)
        if answer.template is not None:
            typer.echo("\n" + yaml_of(answer.template), nl=False)


@cli.command()
def add(
    name: Name,
    file: Annotated[Path, typer.Argument(help="A .yaml file.")],
    live: Live = True,
    wait_all: WaitAll = False,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Add a template, or a new version of one; the JSONL file that it names goes with it."""
    if refusal := name_refusal("a template", name):
        raise fail(refusal)
    template = template_in(file)
    with connected(url, key) as client:
        answer = client.templates.add(name, template, live=live, wait=wait_for(wait_all))
    if as_json:
        print_json(answer)
        return
    new = answer.versions[0].version
    is_beside = not live and new != answer.live
    told = beside("template", answer, new) if is_beside else _is_live(answer)
    typer.echo("\n".join([told, *reached(answer)]))


@cli.command()
def rollback(
    name: Name,
    version: Version = None,
    wait_all: WaitAll = False,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Make an older version live again."""
    with connected(url, key) as client:
        answer = client.templates.rollback(name, version, wait=wait_for(wait_all))
    if as_json:
        print_json(answer)
    else:
        typer.echo("\n".join([_is_live(answer), *reached(answer)]))


@cli.command()
def remove(name: Name, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Remove a template with its versions."""
    with connected(url, key) as client:
        client.templates.remove(name)
    typer.echo(f"{name} is removed.")


add_commands(cli, lambda client: client.templates)


def template_in(file: Path) -> Template:
    """The template in a file of this machine; where there is none, the command ends."""
    try:
        return read_template(file)
    except OSError as error:
        raise fail(f"{file} cannot be read ({error.strerror})") from None
    except TemplateRejected as error:
        raise fail(f"{file} is no template: {error.message}") from None


def _is_live(template: TemplateOut) -> str:
    return f"{template.name} is live: version {short(template.live or '')}."
