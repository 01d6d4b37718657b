"""What is the same for rows and for images: classes and owners as numbers, a share held out, copies counted."""

import warnings
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from analysis.strata import stratified_choice
from flatlab.data.samples import Sample, Source
from flatlab.errors import UsageError, shown

Labels = NDArray[np.int64]

_Input = TypeVar("_Input")

_NOTABLE = 0.01  # share of test samples that are copies of training samples; CIFAR's own few are below it


def held_out(
    source: Source, share: float, samples: Sequence[Sample], inputs: Sequence[_Input]
) -> list[tuple[list[Sample], list[_Input]]]:
    """Draw `share` of the samples, class by class and the same ones each time, as the test split.

    Of every class one sample stays at least, since what training has not met cannot be told.

    Raises:
        UsageError: one of the two would be empty.
    """
    count, chosen = round(share * len(samples)), set()
    if 1 <= count < len(samples):
        groups = np.unique([str(_label(sample)) for sample in samples], return_inverse=True)[1]
        chosen = set(stratified_choice(groups, count, np.random.default_rng(0)).tolist())
        classes = (np.flatnonzero(groups == number).tolist() for number in range(groups.max() + 1))
        chosen -= {members[0] for members in classes if chosen.issuperset(members)}
    if not chosen:
        raise UsageError(
            f"{source} has {len(samples)} training samples, of which holdout = {share:g} leaves one split empty."
        )
    places = ([k for k in range(len(samples)) if k not in chosen], sorted(chosen))
    return [([samples[k] for k in part], [inputs[k] for k in part]) for part in places]


def owner_numbers(source: Source, samples: Sequence[Sample]) -> Labels:
    """Number the values of the column of clients in their sorted order, (n,).

    Raises:
        UsageError: a value is missing, or is neither a whole number nor a name, or there are both.
    """
    owners = [sample.owner for sample in samples]
    for sample in samples:
        if not isinstance(sample.owner, int | str):
            raise UsageError(
                f"{sample.name} has in the column {source.reading.column!r} neither a whole number nor a name: "
                f"{shown(sample.owner)}."
            )
    if len({type(owner) for owner in owners}) > 1:
        raise UsageError(f"{source} has names and whole numbers in its column {source.reading.column!r}.")
    return np.unique(np.array(owners, dtype=object), return_inverse=True)[1].astype(np.int64)


def copied(train: Iterable[NDArray[Any]], test: Iterable[NDArray[Any]]) -> int:
    """How many test samples are training samples to the last bit."""
    known = {hash(one.tobytes()) for one in train}
    return sum(hash(one.tobytes()) in known for one in test)


def warn_of_copies(data: object, what: str, copies: int, count: int) -> None:
    """Say how many of the `count` test samples of `data` are `copied`, where many are; `what` they are."""
    if copies >= _NOTABLE * count:
        warnings.warn(
            f"{data} has {count} test {what}, of which {copies} are training {what} too: its test accuracy "
            "says less than it seems to.",
            stacklevel=2,
        )


def class_numbers(
    source: Source, classes: Sequence[str] | None, train: Sequence[Sample], test: Sequence[Sample]
) -> tuple[Labels, Labels, int]:
    """Number the classes as the data set declares them, or else in the sorted order of the training labels.

    Returns the labels of both splits, (n,) each, and how many classes there are.

    Raises:
        UsageError: a label is neither a whole number nor a name, or is of no class; or there are not two classes.
    """
    splits = [[_label(sample) for sample in split] for split in (train, test)]
    kinds = {type(label) for labels in splits for label in labels}
    if len(kinds) > 1:
        raise UsageError(f"{source} has names and whole numbers as labels: choose one of them for both splits.")
    values = sorted(set(splits[0])) if classes is None else range(len(classes))
    number = {value: place for place, value in enumerate(values)}
    for what, labels in zip(("training", "test"), splits, strict=True):
        unknown = next((label for label in labels if label not in number), None)
        if unknown is not None:
            raise UsageError(
                f"{source} has the label {unknown} in its {what} split, which is none of its {len(number)} classes."
            )
    learnt = set(splits[0])
    if len(learnt) < 2:
        only = number[min(learnt, key=str)] if learnt else 0
        raise UsageError(
            f"{source} has the one class {(classes or values)[only]}, and nothing to tell it from, in its training "
            "split: give it two at least."
        )
    numbers = [np.array([number[label] for label in labels], dtype=np.int64) for labels in splits]
    return numbers[0], numbers[1], len(number)


def _label(sample: Sample) -> int | str:
    if not isinstance(sample.label, int | str):
        raise UsageError(f"{sample.name} has a label that is neither a whole number nor a name: {shown(sample.label)}.")
    return sample.label if isinstance(sample.label, str) else int(sample.label)  # a truth value is a number
