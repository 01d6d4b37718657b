"""`python -m benchmarks [training | curvature]`."""

import sys
from importlib import import_module

if __name__ == "__main__":
    for name in sys.argv[1:] or ("training", "curvature"):
        import_module(f"benchmarks.{name}").main()
