"""How long a measurement will take, told from one gradient of a few samples."""

from analysis.derivatives import gradients
from analysis.problem import Problem
from flatlab.clock import seconds_on

PRODUCT_GRADIENTS = 1.7
"""What a product with the Hessian costs: 1.5 gradients for the CIFAR CNN, more for a transformer."""


def product_seconds(problem: Problem) -> float:
    """About the seconds of one product with the Hessian of `problem`, from a gradient of its first chunk."""
    chunk = next(iter(problem.chunks()))
    leaves = problem.leaves()
    began = seconds_on(problem.device)
    with problem.passing():
        gradients([problem.chunk_loss(chunk, leaves)], list(leaves.values()))
    seconds = seconds_on(problem.device) - began
    return PRODUCT_GRADIENTS * seconds * problem.samples / len(chunk.targets)
