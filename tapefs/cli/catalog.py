"""`tapefs catalog export` and `import`: let another computer look into a cartridge."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tapefs.cli import arguments as shared
from tapefs.cli.terminal import bytes_text

if TYPE_CHECKING:
    import argparse

    from tapefs.cli.terminal import Terminal


def add_parsers(commands: shared.Commands) -> None:
    """Add `tapefs catalog export` and `tapefs catalog import`."""
    members = shared.add_family(
        commands,
        "catalog",
        summary="export the catalog of a cartridge to a file, or import one",
        description="Let another computer look into a cartridge that it has never seen.",
        example="tapefs catalog export FIRST first.tapefs-catalog",
    )
    exporting = shared.add_command(
        members,
        "export",
        run_export,
        summary="write the catalog of a volume to a file, for another computer",
        description="Write what is on the tape of VOLUME, as far as this computer knows, to the "
        "new file FILE: names, attributes, hashes and places, no content. What waits in the spool "
        "is not on tape and not in it. No drive is needed.",
        example="tapefs catalog export FIRST first.tapefs-catalog",
    )
    exporting.add_argument(
        "volume", metavar="VOLUME", help="its name, its UUID, or the beginning of that"
    )
    exporting.add_argument("file", metavar="FILE", help="must not exist yet")
    shared.add_state_dir(exporting)
    importing = shared.add_command(
        members,
        "import",
        run_import,
        summary="look into a cartridge of another computer, by the catalog it exported",
        description="Take the catalog in FILE, so that volumes, ls, find, du, manifest and "
        "'mount --offline' know the volume. Every row of it is checked. A mount of the cartridge "
        "does not rely on it: it reads the catalog from the tape.",
        example="tapefs catalog import first.tapefs-catalog",
    )
    importing.add_argument("file", metavar="FILE", help="what 'tapefs catalog export' wrote")
    shared.add_state_dir(importing)


def run_export(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """Export; see `add_parsers`."""
    # SQLite comes with these; `tapefs --help` does without.
    from tapefs.archive import catalog_exchange, known_volumes  # noqa: PLC0415

    volume = known_volumes.find_volume(shared.state_dir(arguments.state_dir), arguments.volume)
    path = Path(arguments.file).absolute()
    terminal.if_interrupted = f"interrupted; {path} was not written"
    with terminal.progress() as progress:
        header = catalog_exchange.export_catalog(volume, path, progress)
    size_bytes = path.stat().st_size
    terminal.answer(
        {**header, "file": str(path), "file_bytes": size_bytes},
        f"the catalog of volume '{header['name']}' ({header['generations']} generations) is in "
        f"{path}, {bytes_text(size_bytes)}",
    )
    return 0


def run_import(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """Import; see `add_parsers`."""
    from tapefs.archive import catalog_exchange  # noqa: PLC0415 - see run_export

    with terminal.progress() as progress:
        volume = catalog_exchange.import_catalog(
            shared.state_dir(arguments.state_dir), Path(arguments.file).absolute(), progress
        )
    terminal.answer(
        {"name": volume.name, "uuid": volume.uuid},
        f"volume '{volume.name}' ({volume.uuid[:8]}) can be looked into: "
        f"tapefs ls {volume.uuid[:8]}",
    )
    return 0
