"""The commands behind `flatlab`, one module each; imported only when called."""

import sys
from pathlib import Path

# Our packages come before those of the same names that a user's folder may hold: `python -m` puts it first on the path.
sys.path.insert(0, str(Path(__file__).parents[2]))
