"""Train federated models with and without MAN, and keep what is needed to measure how flat they are."""

__version__ = "0.1.0"
