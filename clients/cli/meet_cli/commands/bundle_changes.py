"""`meet bundle add`, `update` and so on: changes of a bundle's preferences, which running servers take up.

The bundle stays as it is; changes are kept in the registry beside it. Controls are checked here, and proved in the
engine by each server before it serves them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meet_cli.errors import CommandError

if TYPE_CHECKING:
    from meet_bundle import Bundle
    from meet_server.registry.state import State
    from meet_server.registry.store import Store

MAX_BYTES = 8 << 30

_folder = click.argument("bundle", type=click.Path(path_type=Path))
_name = click.argument("name")
_source = click.argument("source", type=click.Path(exists=True, path_type=Path))
_registry = click.option(
    "--registry", type=click.Path(path_type=Path), help="Folder of the registry; BUNDLE.registry by default."
)
_preference = click.option("--preference", "-p", help="Which preference, where SOURCE is a bundle of several.")


@click.command(
    short_help="Pack a control for another server.",
    epilog="Example: meet bundle pack bundles/letters formal -o formal.zip",
)
@_folder
@_name
@click.option("--output", "-o", type=click.Path(path_type=Path), required=True, help="The archive to write.")
def pack(bundle: Path, name: str, output: Path) -> None:
    """Pack the preference NAME of BUNDLE, for `meet bundle add` or `POST /v1/preferences`."""
    from meet_bundle.output import refusal, write_output
    from meet_server.registry import record

    if (reason := refusal(output)) is not None:
        raise CommandError(f"--output: {reason}")
    archive = record.pack(_control(bundle, name))
    try:
        write_output(output, archive)
    except OSError as error:
        raise CommandError(f"{output} cannot be written: {error.strerror}") from None
    click.echo(f"{output}: {name}, {len(archive):,} bytes")


@click.command(short_help="Add a preference.", epilog="Example: meet bundle add bundles/demo bundles/letters -p formal")
@_folder
@_source
@_preference
@_registry
def add(bundle: Path, source: Path, preference: str | None, registry: Path | None) -> None:
    """Add a preference to BUNDLE from SOURCE: another bundle of the same model, an archive, or a folder."""
    from meet_server.registry.state import added

    _take_in(bundle, registry, _read(source, preference), added, None)


@click.command(
    short_help="Give a preference another control.",
    epilog="Example: meet bundle update bundles/demo concise concise.zip",
)
@_folder
@_name
@_source
@_registry
def update(bundle: Path, name: str, source: Path, registry: Path | None) -> None:
    """Give the preference NAME of BUNDLE the control in SOURCE; the former can be rolled back to."""
    from meet_server.registry.state import updated

    _take_in(bundle, registry, _read(source, name), updated, name)


@click.command(
    short_help="Change description and aliases.",
    epilog="Example: meet bundle describe bundles/demo concise --alias short --alias brief",
)
@_folder
@_name
@click.option("--description", help="What the preference is.")
@click.option("--alias", "aliases", multiple=True, help="Another name; all that are given replace all there were.")
@click.option("--no-alias", is_flag=True, help="No other names.")
@_registry
def describe(
    bundle: Path, name: str, description: str | None, aliases: tuple[str, ...], no_alias: bool, registry: Path | None
) -> None:
    """Change what the preference NAME of BUNDLE is called and how it is described."""
    fields: dict[str, Any] = {} if description is None else {"description": description}
    if aliases or no_alias:
        fields["aliases"] = aliases
    if not fields:
        raise click.UsageError("nothing to change; give --description, --alias or --no-alias")
    _change(bundle, registry, name, fields)


@click.command(short_help="Stop serving a preference.", epilog="Example: meet bundle disable bundles/demo detailed")
@_folder
@_name
@_registry
def disable(bundle: Path, name: str, registry: Path | None) -> None:
    """Stop serving the preference NAME of BUNDLE; `meet bundle enable` serves it again."""
    _change(bundle, registry, name, {"enabled": False})


@click.command(short_help="Serve it again.", epilog="Example: meet bundle enable bundles/demo detailed")
@_folder
@_name
@_registry
def enable(bundle: Path, name: str, registry: Path | None) -> None:
    """Serve the preference NAME of BUNDLE again."""
    _change(bundle, registry, name, {"enabled": True})


@click.command(short_help="Serve an earlier revision.", epilog="Example: meet bundle rollback bundles/demo concise 0")
@_folder
@_name
@click.argument("revision", type=click.IntRange(0))
@_registry
def rollback(bundle: Path, name: str, revision: int, registry: Path | None) -> None:
    """Serve REVISION of the preference NAME of BUNDLE again; 0 is the bundle's own."""
    _change(bundle, registry, name, {"revision": revision})


@click.command(short_help="Remove a preference.", epilog="Example: meet bundle remove bundles/demo formal")
@_folder
@_name
@_registry
def remove(bundle: Path, name: str, registry: Path | None) -> None:
    """Remove the preference NAME from what is served of BUNDLE. The bundle keeps its own."""
    from meet_server.registry.state import removed

    opened, store = _opened(bundle, registry)
    _commit(opened, store, lambda state: removed(state, opened.manifest, name), name)


COMMANDS = (pack, add, update, describe, disable, enable, rollback, remove)


def _opened(bundle: Path, registry: Path | None) -> tuple[Bundle, Store]:
    from meet_bundle import open_bundle
    from meet_server.registry.store import Store, beside

    return open_bundle(bundle, verify=False), Store(registry or beside(bundle))


def _control(bundle: Path, name: str | None) -> dict[str, bytes]:
    from meet_bundle import open_bundle
    from meet_server.registry.record import files_of

    opened = open_bundle(bundle)
    names = [preference.name for preference in opened.manifest.preferences]
    if name is None and len(names) > 1:
        raise CommandError(f"{bundle} holds {', '.join(names)}; say which with --preference")
    if name is not None and name not in names:
        raise CommandError(f"{bundle} has no preference {name!r}; it holds {', '.join(names)}")
    return files_of(opened, name or names[0])


def _read(source: Path, preference: str | None) -> dict[str, bytes]:
    from meet_bundle import MANIFEST_NAME
    from meet_server.registry.record import files_in, unpack

    if (source / MANIFEST_NAME).is_file():
        return _control(source, preference)
    return files_in(source, MAX_BYTES) if source.is_dir() else unpack(source.read_bytes(), MAX_BYTES)


def _take_in(
    bundle: Path, registry: Path | None, files: Mapping[str, bytes], change: Callable[..., State], name: str | None
) -> None:
    from meet_server.registry.checking import check

    opened, store = _opened(bundle, registry)
    preference = check(dict(files), opened)
    if name is not None and preference.name != name:
        raise CommandError(f"the control is of {preference.name!r}, and {name!r} is to be updated")
    content = store.keep(files)
    _commit(opened, store, lambda state: change(state, opened.manifest, preference.name, content), preference.name)


def _change(bundle: Path, registry: Path | None, name: str, fields: Mapping[str, Any]) -> None:
    from meet_server.registry.state import changed

    opened, store = _opened(bundle, registry)
    _commit(opened, store, lambda state: changed(state, opened.manifest, name, fields), name)


def _commit(bundle: Bundle, store: Store, change: Callable[[State], State], name: str) -> None:
    from meet_server.registry.changing import commit

    state = commit(bundle, store, change)
    entry = state.entry(name)
    what = "removed" if entry.removed else f"revision {entry.current}{'' if entry.enabled else ', disabled'}"
    click.echo(f"{name}: {what}; generation {state.generation}, which running servers take up in a second or two")
