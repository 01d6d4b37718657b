"""One HTML page with the tables, the figures and how each number is made; it needs nothing but itself."""

import base64
import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w
from jinja2 import Environment, PackageLoader, StrictUndefined

from figures.errors import MissingResultsError
from figures.formats import as_csv, as_latex, as_markdown
from figures.gallery import FIGURES
from figures.labels import partition_label
from figures.results import Result, Results, require_alike
from figures.table import Table
from figures.unconverged import MEANINGS
from figures.verdict_tables import verdict_tables

SECTIONS = {
    "findings": "What MAN changed",
    "tables": "Tables",
    "figures": "Figures",
    "verdicts": "Verdicts",
    "missing": "What is not here",
    "reproduce": "How to reproduce",
}

WIDE_PIXELS = 1000
"""Pictures wider than this take two columns of the page."""

COMMIT_DIGITS = 10

MEDIA = {"png": "image/png", "pdf": "application/pdf", "csv": "text/csv", "md": "text/markdown", "tex": "text/plain"}


def make_report(
    results: Results,
    tables: Sequence[Table],
    pictures: Mapping[str, Mapping[str, bytes]],
    skipped: Mapping[str, str],
) -> str:
    """Return the page. `pictures` are the contents of each figure's files; `skipped` says why others are not here.

    The verdicts of `flatlab verify` are taken from the folder of results.

    >>> from flatlab.federated.config import make_config
    >>> config, rounds = make_config({"rounds": 1}), ({"round": 1, "test_accuracy": 0.9},)
    >>> run = Result(Path("run"), config, "iid", "iid", rounds, {}, (), trained=True, failure="")
    >>> "90.00" in make_report(Results(Path(), None, (run,)), [], {}, {})
    True
    """
    verdicts, without = verdict_tables(results)
    skipped = {**skipped, **{f"table {name}": reason for name, reason in without.items()}}
    content: dict[str, Any] = {
        "title": results.grid.title if results.grid else f"Runs in {results.folder.resolve().name}",
        "done": sum(run.trained for run in results.runs),
        "total": len(results.runs) + len(results.absent),
        "made_by": _made_by(results),
        "findings": [finding for table in tables for finding in _findings(table)],
        "tables": [_table(table) for table in tables],
        "figures": [_figure(name, files) for name, files in pictures.items()],
        "verdicts": [_table(table) for table in verdicts],
        "skipped": list(skipped.items()),
        "unfinished": _unfinished(results),
        "command": _grid_command(results) if results.grid else f"flatlab report {_word(results.folder)}",
        "grid": results.grid_text,
        "folder": str(results.folder),
        "run_commands": _run_commands(results),
        "runs": _runs(results.runs),
        "configurations": [(run.name, tomli_w.dumps(run.config.plain())) for run in results.runs],
    }
    present = {"tables": True, "figures": True, "reproduce": True, "missing": skipped or content["unfinished"]}
    content["sections"] = [(key, name) for key, name in SECTIONS.items() if present.get(key) or content.get(key)]
    environment = Environment(
        loader=PackageLoader("figures", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("report.html").render(content)


def _findings(table: Table) -> list[str]:
    """In how many rows the number is higher, lower or either with MAN, by the interval of the paired difference."""
    intervals = [
        (row["difference_low"], row["difference_high"]) for row in table.numbers if row.get("difference_low", "") != ""
    ]
    if not intervals:
        return []
    higher = sum(low > 0 for low, _ in intervals)
    lower = sum(high < 0 for _, high in intervals)
    doubts = sum(bool(row.get("without_unconverged", 0) + row.get("with_unconverged", 0)) for row in table.numbers)
    return [
        f"{table.title}: higher with MAN in {higher}, lower in {lower}, undecided in "
        f"{len(intervals) - higher - lower} of {len(intervals)} rows."
        + (f" In {doubts} {'row' if doubts == 1 else 'rows'} not every number is converged." if doubts else "")
    ]


def _table(table: Table) -> dict[str, Any]:
    texts = {"csv": as_csv(table.numbers), "md": as_markdown(table), "tex": as_latex(table)}
    return {**vars(table), "files": [(kind, _embedded(kind, text.encode())) for kind, text in texts.items()]}


def _figure(name: str, data: Mapping[str, bytes]) -> dict[str, Any]:
    embedded = {kind: _embedded(kind, content) for kind, content in data.items()}
    width = int.from_bytes(data["png"][16:20])  # in the header of every PNG
    return {
        "name": name,
        "caption": FIGURES[name].caption,
        "image": embedded.pop("png"),
        "wide": width > WIDE_PIXELS,
        "files": list(embedded.items()),
    }


def _embedded(kind: str, data: bytes) -> str:
    return f"data:{MEDIA[kind]};base64,{base64.b64encode(data).decode()}"


def _made_by(results: Results) -> str:
    """The versions that measured, where they are known."""
    measured = [run for run in results.runs if run.measured]
    if not measured:
        return ""
    versions = defaultdict(lambda: "unknown", results.provenance(measured))
    commits = ", ".join(commit[:COMMIT_DIGITS] for commit in versions["commit"].split(", "))
    return f"Measured by flatlab {versions['flatlab']} at commit {commits}, torch {versions['torch']}."


def _unfinished(results: Results) -> list[tuple[str, str]]:
    """Cells that are not trained to their end: why, or how far they are."""
    return [
        (run.name, run.failure or f"trained for {len(run.records)} of {run.config.rounds} rounds.")
        for run in results.runs
        if not run.trained
    ] + list(results.absent.items())


def _grid_command(results: Results) -> str:
    """The line that makes everything anew."""
    each = [_own_options(results.runs, field) for field in ("model", "dataset", "algorithm")]
    own = "".join(end for ends in each for end in ends)
    return f"flatlab reproduce {_word(results.folder / 'grid.toml')} --out {_word(results.folder)}{own}"


def _run_commands(results: Results) -> str:
    """The lines that make and measure one run anew, with the settings of the grid."""
    train = f"flatlab train --config {_word(results.folder)}/RUN/config.toml --out again/RUN"
    lines = [f"{train}{own}" for own in _own_options(results.runs, "model", "dataset", "algorithm")]
    measure = results.grid.measure if results.grid else None
    if measure is None:
        return "\n".join(lines)
    for own in _own_options(results.runs, "model", "dataset"):
        checkpoint = f"again/RUN/final.pt --samples {measure.samples}{own}"
        lines += [
            f"flatlab eigs {checkpoint}",
            f"flatlab trace {checkpoint} --tol {measure.trace_tol:g}",
            f"flatlab density {checkpoint} --depth {measure.density_depth} --probes {measure.density_probes}",
            f"flatlab surface {checkpoint} --points {measure.surface_points}",
        ]
    return "\n".join(lines)


def _own_options(runs: Sequence[Result], *fields: str) -> list[str]:
    """The ends of lines that name code of the user's, which runs only where it is named: each that some run needs."""
    ends = {shlex.join(run.config.own_options(*fields)) for run in runs} or {""}
    return [end and f" {end}" for end in sorted(ends)]


def _runs(runs: Sequence[Result]) -> dict[str, Any]:
    """One row per run; eigenvalues and traces only where all were made in one way, so that they can be compared."""
    alike = {kind: _are_alike(runs, kind) for kind in ("eigs", "trace")}
    columns = ("run", "zeta", "partition", "seed", "test accuracy, %", "top eigenvalue", "trace", "commit")
    rows = []
    for run in runs:
        commits = (m.get("versions", {}).get("commit", "") for m in run.measured.values())
        commit = next((commit[:COMMIT_DIGITS] for commit in commits if commit), "")
        rows.append(
            (
                run.name,
                f"{run.config.effective_zeta:g}",
                partition_label(run.partition),
                str(run.config.seed),
                "" if run.accuracy is None else f"{100 * run.accuracy:.2f}",
                _number(run.top_eigenvalue if alike["eigs"] else None, run.doubt("top_eigenvalue")),
                _number(run.trace if alike["trace"] else None, run.doubt("trace")),
                commit,
            )
        )
    return {"columns": columns, "rows": rows}


def _number(value: float | None, mark: str) -> str:
    return "" if value is None else f"{value:.4g}{f' ({MEANINGS[mark]})' if mark else ''}"


def _are_alike(runs: Sequence[Result], kind: str) -> bool:
    try:
        require_alike(runs, kind)
    except MissingResultsError:
        return False
    return True


def _word(path: Path) -> str:
    return shlex.quote(str(path))
