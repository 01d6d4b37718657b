"""`flatlab verify`: the theory's statements, checked one by one; and what training with MAN really does."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flatlab.cli.console import fail_if, noted, require_places, warn_of_unwritable, write_json
from flatlab.cli.options import final_checkpoints, folder
from flatlab.cli.pictures import save_drawing, save_picture
from flatlab.cli.used import is_given, option
from flatlab.cores import is_one_of_many
from flatlab.errors import NOT_CONVERGED, UsageError
from flatlab.terminal.console import console, say, status

if TYPE_CHECKING:
    from analysis.theory.statements import Check
    from flatlab.measuring.study import Plan
    from flatlab.measuring.subjects import Measurement

_STUDY = "Study"


def verify(
    context: typer.Context,
    checkpoints: Annotated[
        list[Path] | None, typer.Argument(metavar="[CKPT]...", help="Checkpoints of flatlab train (default: toys).")
    ] = None,
    study: Annotated[
        bool, typer.Option("--study", help="Ask what MAN does, over coefficients and seeds, with a verdict per claim.")
    ] = False,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Training samples of the loss (default: 200, of a study 2000).")
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option(help="Folder that holds local copies of data sets (or FLATLAB_DATA).")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Let this package.module:function, which a checkpoint names, run; may be repeated."),
    ] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(help="Let this package.module:function, a checkpoint's data set, run; may be repeated."),
    ] = None,
    figures: Annotated[Path | None, typer.Option(help="Draw the figures of these numbers into this folder.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the numbers to this file too.")] = None,
    out: Annotated[
        Path,
        typer.Option(
            metavar="PATH",
            parser=folder,
            help="Folder of the study; what it already holds is not done again.",
            rich_help_panel=_STUDY,
        ),
    ] = Path("checkpoints/study"),
    zetas: Annotated[
        str, typer.Option(help="MAN's coefficients, separated by commas.", rich_help_panel=_STUDY)
    ] = "0.05,0.15,0.5",
    zeta_logits: Annotated[
        float,
        typer.Option(
            min=0,
            help="Study each of them with the logits penalised by this as well; 0: don't.",
            rich_help_panel=_STUDY,
        ),
    ] = 2.0,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0, 1, ... of every run.", rich_help_panel=_STUDY)] = 5,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of every run.", rich_help_panel=_STUDY)] = 60,
) -> None:
    """Check the theory: small activations, small layer eigenvalues, small top eigenvalue.

    Without checkpoints, on toy networks by dense Hessians; with checkpoints, on these by products alone, every number
    with its error bound. A statement that must hold and does not ends with exit code 1. With --study, train the bundled
    digits without and with MAN (or take the checkpoints given), measure, and compare run by run with the same seed.
    """
    from flatlab.functions import let_run
    from flatlab.measuring.subjects import Measurement

    _refuse_idle(context, study, bool(checkpoints))
    checkpoints = final_checkpoints(checkpoints)
    let_run(*(dataset or ()))
    measurement = Measurement(samples, data_root=data_root, trusted_models=tuple(model or ()))
    if study:
        from flatlab.measuring.study import read_plan

        _study(checkpoints, measurement, out, read_plan(zetas, zeta_logits, seeds, rounds), figures, json)
    elif checkpoints:
        _verify_checkpoints(checkpoints, measurement, figures, json)
    else:
        _verify_toys(figures, json)


def _refuse_idle(context: typer.Context, study: bool, checkpoints: bool) -> None:
    """Raise `UsageError` for an option that would do nothing in this combination, and for processes that would."""
    if is_one_of_many() and (study or not checkpoints):
        raise UsageError("flatlab verify shares no work but that on checkpoints: start it without torchrun.")
    trains, opens = ("zetas", "zeta_logits", "seeds", "rounds"), ("samples", "data_root", "model", "dataset")
    idle = {
        "is of the runs that --study trains": trains if not study or checkpoints else (),
        "is of --study": ("out",) if not study else (),
        "is of checkpoints, and the toys bring their own data": opens if not study and not checkpoints else (),
    }
    for why, names in idle.items():
        for name in names:
            if is_given(context, name):
                raise UsageError(f"{option(name)} {why}: leave it out.")


def _verify_toys(figures: Path | None, json: Path | None) -> None:
    """Check the statements on toys; raises `FlatlabError` where one fails that must hold."""
    from flatlab.cli.theory_tables import print_toys
    from flatlab.measuring.verify import require_unbroken, toy_battery

    warn_of_unwritable([*filter(None, (json, figures and figures / "theory-slack.png"))])
    with status.status("Toys") as spinner:
        found = toy_battery(spinner.update)
    print_toys(found)
    results = found.to_dict()
    unsaved: list[str] = []
    with noted(unsaved):
        write_json(json, results)
    if figures:
        from figures.theory_shift import draw_theory_shift
        from figures.theory_slack import draw_theory_slack

        with noted(unsaved):
            save_drawing(draw_theory_slack(results), figures / "theory-slack")
            save_drawing(draw_theory_shift(results), figures / "theory-shift")
    require_unbroken(found.checks)
    fail_if(unsaved)


def _verify_checkpoints(
    paths: Sequence[Path], measurement: "Measurement", figures: Path | None, json: Path | None
) -> None:
    """Check the statements on every checkpoint and write `<checkpoint>.verify.json` beside it."""
    from flatlab.cli.sweep import together
    from flatlab.cli.theory_tables import print_chain
    from flatlab.malloc import keep_freed_memory
    from flatlab.measuring.verify import open_with_clients, require_unbroken, verify_subject
    from flatlab.runs.checkpoint import load_checkpoint
    from flatlab.runs.measurements import kept_measurement, measurement_path, save_measurement
    from flatlab.terminal.progress import progress_line

    keep_freed_memory()
    for path in paths:
        load_checkpoint(path)  # every file is looked at before the first is worked on
        kept_measurement(measurement_path(path, "verify"))
    results: list[dict[str, Any]] = []
    checks: list[Check] = []
    unsaved: list[str] = []
    with together(measurement.device) as first:
        warn_of_unwritable([*(measurement_path(path, "verify") for path in paths), *filter(None, (json,))])
        for path in paths:
            subject, clients = open_with_clients(path, measurement)
            with progress_line(str(path)) as tell:
                found = verify_subject(subject, clients, tell)
            results.append(found.to_dict())
            if first:
                with noted(unsaved):
                    say(save_measurement(path, "verify", results[-1]).note)
            print_chain(path, subject.available, found)
            checks += found.checks
    with noted(unsaved):
        write_json(json, results[0] if len(results) == 1 else {"checkpoints": results})
    if figures:
        from figures.theory_chain import draw_theory_chain

        with noted(unsaved):
            save_drawing(draw_theory_chain(results), figures / "theory-chain")
    require_unbroken(checks)
    fail_if(unsaved)


def _study(
    paths: Sequence[Path], measurement: "Measurement", out: Path, plan: "Plan", figures: Path | None, json: Path | None
) -> None:
    """Study the checkpoints in `paths`, or else the toy runs of `plan`; writes `out`/study.json."""
    from flatlab.cli.theory_tables import print_study
    from flatlab.measuring.study import make_study
    from flatlab.runs.interruption import exit_status

    require_places([out / "study.json", json])
    try:
        with status.status("study") as spinner:
            found = make_study(paths, measurement, out, plan, spinner.update)
    except KeyboardInterrupt as interruption:
        say("\nInterrupted. The same command goes on from here.")
        raise SystemExit(exit_status(interruption)) from interruption
    results = found.to_dict()
    write_json(json, results)
    print_study(found.verdicts, found.correlations)
    for checkpoint in found.alone:
        say(f"Note: {checkpoint} is compared with none, as no other one differs from it in MAN alone at the same seed.")
    console.print(f"Numbers: [bold]{out / 'study.json'}[/bold]", soft_wrap=True)
    if figures:
        from figures.theory_heatmap import draw_theory_heatmap
        from figures.theory_scatter import draw_theory_scatter

        save_drawing(draw_theory_scatter(results), figures / "theory-scatter")
        save_picture(lambda found: draw_theory_heatmap(found[0]), [results], figures / "theory-heatmap")
    if any(comparison.doubt == "!" for verdict in found.verdicts for comparison in verdict.comparisons):
        raise SystemExit(NOT_CONVERGED)
