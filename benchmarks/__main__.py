"""`python -m benchmarks [training] [curvature] [curvature.PART]`: all measurements, or those named."""

import sys
from importlib import import_module

if __name__ == "__main__":
    for name in sys.argv[1:] or ("training", "curvature"):
        module, _, part = name.partition(".")
        import_module(f"benchmarks.{module}").main(*filter(None, [part]))
