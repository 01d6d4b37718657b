"""`python -m benchmarks NAME...`: training, training.PART, curvature, curvature.PART, curvature_stages, overlooked,
overlooked.PART, float32, float32.COUNT, large, large.NETWORK, processes, processes.SAMPLES, mutations, mutations.COUNT,
faults, faults.COUNT, flower, flower.ROUNDS, wheels, wheels.full, architectures, gpu, gpu.PART, gpu.CELL; without a
name, training and curvature.
"""

import sys
from importlib import import_module

from flatlab.errors import SAID

if __name__ == "__main__":
    try:
        for name in sys.argv[1:] or ("training", "curvature"):
            module, _, part = name.partition(".")
            import_module(f"benchmarks.{module}").main(*filter(None, [part]))
    except SAID as error:
        sys.exit(str(error))
