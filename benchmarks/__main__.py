"""`python -m benchmarks NAME...`: training, training.PART, curvature, curvature.PART, curvature_stages, overlooked,
overlooked.PART, float32, float32.COUNT, large, large.NETWORK, processes, processes.SAMPLES, mutations, mutations.COUNT,
faults, faults.COUNT, flower, flower.ROUNDS, wheels, wheels.full, architectures, gpu, gpu.PART, gpu.CELL; without a
name, training and curvature. `--cells N` runs N cells of the paper after them, as gpu.N.
"""

import sys
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Sequence
from importlib import import_module

from flatlab.errors import SAID

MODULES = (
    "training",
    "curvature",
    "curvature_stages",
    "overlooked",
    "float32",
    "large",
    "processes",
    "mutations",
    "faults",
    "flower",
    "wheels",
    "architectures",
    "gpu",
)


def main(words: Sequence[str]) -> None:
    """Run what the words name, in their order."""
    parser = ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", type=_name)
    parser.add_argument("--cells", type=int, metavar="N", help="then N cells of the paper: gpu.N")
    asked = parser.parse_args(words)
    names = asked.names or ([] if asked.cells else ["training", "curvature"])
    for name in names + ([f"gpu.{asked.cells}"] if asked.cells else []):
        module, _, part = name.partition(".")
        import_module(f"benchmarks.{module}").main(*filter(None, [part]))


def _name(word: str) -> str:
    if word.partition(".")[0] not in MODULES:
        raise ArgumentTypeError(f"there is no benchmark {word!r}; choose among {', '.join(MODULES)}")
    return word


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except SAID as error:
        sys.exit(str(error))
