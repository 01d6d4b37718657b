"""`python docs/commands.py`: print the reference of commands, made from the commands themselves."""

import inspect
import re
import sys
from collections.abc import Iterator

import typer
from typer.main import get_command

from flatlab.cli.main import app

TITLE = "# Commands\n\nMade from what `flatlab COMMAND --help` says."


def reference() -> str:
    """The page, in Markdown."""
    root = get_command(app)
    context = typer.Context(root, info_name="flatlab")
    parts = [TITLE, "## flatlab", *described(context)]
    for name, command in root.commands.items():  # type: ignore[attr-defined]
        parts += [f"## flatlab {name}", *described(typer.Context(command, info_name=name, parent=context))]
    return "\n\n".join(parts) + "\n"


def described(context: typer.Context) -> Iterator[str]:
    """What a command does, how it is called, and each of its options, panel by panel."""
    command = context.command
    paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(command.help or ""))
    yield from (plain(" ".join(paragraph.split())) for paragraph in paragraphs)
    yield f"```\n{context.command_path} {' '.join(command.collect_usage_pieces(context))}\n```"
    panels: dict[str, list[str]] = {}
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            panel = getattr(parameter, "rich_help_panel", None) or ""
            panels.setdefault(panel, []).append(f"`{record[0]}`\n: {plain(record[1].replace('  [', ' ['))}")
    for panel, entries in panels.items():
        yield from [f"**{panel}**"] * bool(panel)
        yield "\n\n".join(entries)


def plain(text: str) -> str:
    """`text`, in which a backslash keeps a bracket from rich, without meaning to Markdown."""
    text = text.replace("\\[", "[")
    return re.sub(r"([\\`*_{}\[\]<>#|$~])", r"\\\1", text) or "-"


if __name__ == "__main__":
    sys.stdout.write(reference())
