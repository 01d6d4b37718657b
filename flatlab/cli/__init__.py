"""The commands behind `flatlab`, one module each; imported only when called."""
