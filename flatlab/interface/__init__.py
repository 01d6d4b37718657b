"""What the commands do, as functions: `flatlab.train`, `flatlab.load`, `flatlab.eigs` and the other measures."""
