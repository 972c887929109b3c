"""`meet bundle`: what is in a bundle, and is it whole? Changes of what is served of one are in `bundle_changes`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meet_cli.commands.bundle_changes import COMMANDS
from meet_cli.figures import figures_console, json_option, write_figures

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from meet_bundle import Bundle, Manifest, Preference

_folder = click.argument("bundle", type=click.Path(path_type=Path))


@click.group(
    short_help="Look into a bundle, check it, change its preferences.",
    epilog="Example: meet bundle inspect bundles/demo",
)
def bundle() -> None:
    """Look into a bundle, check it, and change the preferences that are served of it."""


for _command in COMMANDS:
    bundle.add_command(_command)


@bundle.command(
    short_help="Show preferences, controls and files.",
    epilog="Example: meet bundle inspect bundles/demo --json demo.json",
)
@_folder
@json_option
def inspect(bundle: Path, json_file: Path | None) -> None:
    """Show what the folder BUNDLE holds: preferences, controls and files. Digests are not checked."""
    from meet_bundle import open_bundle

    opened = open_bundle(bundle, verify=False)
    _show(opened, figures_console())
    write_figures(json_file, _figures(opened))


@bundle.command(short_help="Check every file against the manifest.", epilog="Example: meet bundle verify bundles/demo")
@_folder
@json_option
def verify(bundle: Path, json_file: Path | None) -> None:
    """Check every file of the folder BUNDLE against the digests in its manifest; exit 2 where one differs."""
    from meet_bundle import open_bundle

    started = time.monotonic()
    manifest = open_bundle(bundle).manifest
    num_bytes = sum(entry.size for entry in manifest.files.values())
    seconds = time.monotonic() - started
    click.echo(
        f"{bundle}: whole; {len(manifest.files)} files, {_size(num_bytes)}, digest {manifest.digest[:12]}, "
        f"checked in {seconds:.1f} s"
    )
    figures = {
        "files": len(manifest.files),
        "bytes": num_bytes,
        "digest": manifest.digest,
        "seconds": seconds,
    }
    write_figures(json_file, figures)


def _show(bundle: Bundle, console: Console) -> None:
    manifest = bundle.manifest
    for name, value in _summary(manifest):
        console.print(f"{name:<12}{value}", markup=False, highlight=False, soft_wrap=True)
    console.print(_preference_table(manifest))
    console.print(_file_table(manifest))


def _summary(manifest: Manifest) -> Iterator[tuple[str, str]]:
    yield "name", f"{manifest.name} (format {manifest.format_version}, digest {manifest.digest[:12]})"
    yield "base", manifest.base.source
    yield "model", f"{manifest.model_dtype}, digest {manifest.model_digest[:12]}"
    yield "controls", _controls(manifest)
    yield "default", manifest.default or "none: a request that names no preference is uncontrolled"
    for field, mapped in (("verbosity", manifest.verbosity), ("effort", manifest.effort)):
        if mapped:
            yield field, ", ".join(f"{value} means {preference}" for value, preference in mapped.items())


def _controls(manifest: Manifest) -> str:
    controls = manifest.controls
    if controls.kind == "lora":
        shared = "one A shared by all" if controls.shared_a else "an A for each"
        layers = ", ".join(controls.target_modules)
        return f"LoRA, rank {controls.rank}, alpha {controls.alpha:g}, {shared}, on {layers}"
    return f"soft prompts of {controls.num_virtual_tokens} virtual tokens, {controls.placement}"


def _preference_table(manifest: Manifest) -> Table:
    from rich.table import Table

    table = Table("preference", "axis", "opposite", "aliases", "strength", "examples", "version", title="preferences")
    for preference in manifest.preferences:
        table.add_row(
            preference.name,
            preference.axis,
            preference.opposite or "-",
            ", ".join(preference.aliases) or "-",
            _strength(preference),
            str(preference.trained_examples),
            preference.version,
        )
    return table


def _strength(preference: Preference) -> str:
    low, high = preference.strength_range
    recommended = "" if preference.calibration is None else f", best {preference.calibration.recommended:g}"
    return f"{low:g} to {high:g}{recommended}"


def _file_table(manifest: Manifest) -> Table:
    from rich.table import Table

    table = Table("file", "size", "sha256", title="files")
    for name, entry in sorted(manifest.files.items()):
        table.add_row(name, _size(entry.size), entry.sha256[:12])
    return table


def _figures(bundle: Bundle) -> dict[str, Any]:
    """The manifest without the proofs and the record of how it was made, which are long."""
    return bundle.manifest.model_dump(mode="json", exclude={"made": True, "preferences": {"__all__": {"probe"}}})


def _size(num_bytes: int) -> str:
    if num_bytes < 1000:
        return f"{num_bytes} B"
    size = num_bytes / 1000
    for unit in ("kB", "MB"):
        if size < 1000:
            return f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
