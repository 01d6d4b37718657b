"""Where the command `flatlab` starts, also as `python -m flatlab`."""

import sys
from pathlib import Path

# Our packages come before those of the same names that a user's folder may hold: `python -m` puts it first on the path.
# Here and nowhere else: who imports flatlab has a path of their own.
sys.path.insert(0, str(Path(__file__).parents[1]))

from flatlab.cli.main import main

if __name__ == "__main__":
    main()
