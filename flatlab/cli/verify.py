"""`flatlab verify`: the theory's statements, checked one by one; and what training with MAN really does."""

from pathlib import Path
from typing import Annotated

import typer

_STUDY = "Study"


def verify(
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
        str | None, typer.Option(help="Let this package.module:function, which the checkpoint names, run.")
    ] = None,
    figures: Annotated[Path | None, typer.Option(help="Draw the figures of these numbers into this folder.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the numbers to this file too.")] = None,
    out: Annotated[
        Path, typer.Option(help="Folder of the study; what it already holds is not done again.", rich_help_panel=_STUDY)
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
    from flatlab.measuring.subjects import Measurement

    measurement = Measurement(samples, data_root=data_root, trusted_model=model)
    if study:
        from flatlab.cli.studying import read_plan, study_run

        plan = read_plan(zetas, zeta_logits, seeds, rounds)
        study_run(checkpoints or [], measurement, out, plan, figures, json)
    elif checkpoints:
        from flatlab.cli.verifying import verify_checkpoints

        verify_checkpoints(checkpoints, measurement, figures, json)
    else:
        from flatlab.cli.verifying import verify_toys

        verify_toys(figures, json)
