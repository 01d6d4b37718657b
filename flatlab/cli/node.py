"""`flatlab node`: trains the clients of one share for a server that reaches it over Flower."""

from pathlib import Path
from typing import Annotated

import typer

from flatlab.cli.options import folder
from flatlab.terminal.console import say


def node(
    share: Annotated[Path, typer.Argument(metavar="SHARE", help="File that flatlab train --save-shares wrote.")],
    superlink: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Address of Flower's SuperLink (with TLS).")
    ] = None,
    root_certificates: Annotated[
        Path | None, typer.Option(help="Certificates that check the SuperLink's (default: the system's).")
    ] = None,
    socket: Annotated[
        Path | None, typer.Option(help="Answer at this Unix socket instead, for Flower's simulation.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            parser=folder,
            help="Folder of the clients' vectors and of logs (default: nodes/ and its name).",
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 1,
    model: Annotated[
        str | None,
        typer.Option(metavar="package.module:function", help="Let this function run where the server's run names it."),
    ] = None,
    algorithm: Annotated[
        str | None,
        typer.Option(metavar="package.module:ALGORITHM", help="Let this run where the server's run names it."),
    ] = None,
    supernode: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- OPTION...]", help="After --, further options of flower-supernode."),
    ] = None,
) -> None:
    """Train the clients of one share, as a node of a Flower federation, until it is ended.

    The node holds only its clients' samples, and its clients' vectors stay with it.
    """
    from flatlab.errors import UsageError
    from flatlab.federated.flower.node import Node
    from flatlab.federated.flower.programs import require_flower
    from flatlab.federated.flower.share import load_share
    from flatlab.federated.flower.supernode import Connection, attend
    from flatlab.functions import let_run
    from flatlab.malloc import keep_freed_memory
    from flatlab.runs.interruption import exit_status, terminable

    if (superlink is None) == (socket is None):
        raise UsageError("flatlab node needs the SuperLink's address (--superlink HOST:PORT), or else --socket.")
    if root_certificates is not None and not root_certificates.is_file():
        raise UsageError(f"There is no file {root_certificates}; --root-certificates is that of the SuperLink.")
    require_flower()
    keep_freed_memory()
    let_run(algorithm)
    held = load_share(share)
    worker = Node(held, (out or Path("nodes") / held.name).resolve(), workers, model)
    say(f"{held.name}: {len(held.clients)} clients, {len(held.labels)} samples.")
    try:
        if superlink is not None:
            attend(worker, Connection(superlink, root_certificates, tuple(supernode or ())))
        elif socket is not None:
            with terminable(), worker:
                worker.serve(socket)
    except KeyboardInterrupt as interruption:
        raise SystemExit(exit_status(interruption)) from interruption
