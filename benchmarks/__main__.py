"""`python -m benchmarks [training]`: all measurements, or those named."""

import sys
from importlib import import_module

if __name__ == "__main__":
    for name in sys.argv[1:] or ("training",):
        import_module(f"benchmarks.{name}").main()
