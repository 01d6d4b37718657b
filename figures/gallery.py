"""Every figure that is made from saved results, by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from figures.accuracy_curves import draw_accuracy_curves
from figures.along_training import draw_along_training
from figures.client_labels import draw_client_labels
from figures.curvature_bars import draw_curvature_bars
from figures.drawing import Drawing
from figures.errors import MissingResultsError
from figures.layer_scatter import draw_layer_scatter
from figures.loss_surface import draw_loss_surface
from figures.results import Results
from figures.spectral_density import draw_spectral_density
from figures.zeta_sensitivity import draw_zeta_sensitivity


@dataclass(frozen=True)
class Figure:
    """One figure: what it shows in a sentence, what it is made from, and what draws it."""

    caption: str
    needs: str
    draw: Callable[[Results], Drawing]


FIGURES: Mapping[str, Figure] = {
    "accuracy": Figure(
        "Test accuracy against communication rounds; mean over seeds, band of one standard deviation. "
        "The axis leaves out the steep beginning.",
        "metrics.jsonl of trained runs",
        draw_accuracy_curves,
    ),
    "curvature": Figure(
        "Top eigenvalue and trace of the Hessian after the last round; mean over seeds, standard deviation.",
        "final.eigs.json, final.trace.json",
        draw_curvature_bars,
    ),
    "surface": Figure(
        "Training loss around the final model along the same two random directions, filter-normalised; one scale.",
        "final.surface.json of two runs, without and with MAN",
        draw_loss_surface,
    ),
    "density": Figure(
        "Density of the Hessian's eigenvalues by stochastic Lanczos quadrature; one seed.",
        "final.density.json of two runs, without and with MAN",
        draw_spectral_density,
    ),
    "layers": Figure(
        "Top eigenvalue of each layer's Hessian block against the mean squared norm of the activations entering it; "
        "one mark per layer and run.",
        "final.eigs.json",
        draw_layer_scatter,
    ),
    "training": Figure(
        "Top eigenvalue of the network and of its layers along training; one seed.",
        "round-*.eigs.json, or runs of flatlab train --track-eigs",
        draw_along_training,
    ),
    "zeta": Figure(
        "Accuracy, top eigenvalue and trace against MAN's coefficient; mean over seeds, standard deviation.",
        "runs at three zetas or more",
        draw_zeta_sensitivity,
    ),
    "labels": Figure(
        "Share of each class in each client's samples; one seed.",
        "final.split.json",
        draw_client_labels,
    ),
}


def draw_figures(results: Results) -> tuple[dict[str, Drawing], dict[str, str]]:
    """Draw every figure that the results allow; returns these, and why others were skipped.

    >>> from pathlib import Path
    >>> from figures.results import Result
    >>> from flatlab.federated.config import make_config
    >>> config, rounds = make_config({"rounds": 1}), ({"round": 1, "test_accuracy": 0.9},)
    >>> run = Result(Path("run"), config, "iid", "iid", rounds, {}, (), trained=True, failure="")
    >>> drawn, skipped = draw_figures(Results(Path(), None, (run,)))
    >>> sorted(drawn), skipped["zeta"]
    (['accuracy'], "no method was run at several zetas; the grid's [sensitivity] asks for them")
    """
    drawn, skipped = {}, {}
    for name, figure in FIGURES.items():
        try:
            drawn[name] = figure.draw(results)
        except MissingResultsError as reason:
            skipped[name] = str(reason)
    return drawn, skipped
