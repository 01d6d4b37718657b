import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from flatlab.errors import UsageError
from flatlab.federated.partition import class_counts, split_clients

Labels = NDArray[np.int64]


@st.composite
def labels_and_clients(draw: st.DrawFn) -> tuple[Labels, int]:
    sizes = draw(st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(sum))
    labels = np.repeat(np.arange(len(sizes)), sizes)
    np.random.default_rng(draw(st.integers(0, 1000))).shuffle(labels)
    return labels, draw(st.integers(1, min(20, len(labels))))


@settings(deadline=None)
@given(
    case=labels_and_clients(),
    rule_delta=st.sampled_from([("iid", None), *(("dirichlet", d) for d in (1e-3, 0.01, 0.1, 0.6, 100.0))]),
    seed=st.integers(0, 2**32),
)
def test_every_sample_goes_to_one_client_and_sizes_are_equal(
    case: tuple[Labels, int], rule_delta: tuple[str, float | None], seed: int
) -> None:
    labels, clients = case
    rule, delta = rule_delta
    parts = split_clients(labels, clients, rule=rule, delta=delta, seed=seed)  # type: ignore[arg-type]
    assert len(parts) == clients
    assert all(part.dtype == np.int64 and (np.diff(part) > 0).all() for part in parts)
    assert sorted(np.concatenate(parts)) == list(range(len(labels)))
    assert {len(part) for part in parts} <= {len(labels) // clients, -(-len(labels) // clients)}
    again = split_clients(labels, clients, rule=rule, delta=delta, seed=seed)  # type: ignore[arg-type]
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


def test_iid_gives_every_client_the_same_of_each_class_where_that_is_possible() -> None:
    labels = np.repeat(np.arange(100), 500)
    parts = split_clients(torch.from_numpy(labels), 100, rule="iid", delta=None, seed=3)
    assert (class_counts(labels, parts, 100) == 5).all()


@pytest.mark.parametrize("rule", ["iid", "dirichlet"])
def test_other_seeds_give_other_splits(rule: str) -> None:
    labels = np.repeat(np.arange(10), 20)
    first, second = (split_clients(labels, 10, rule=rule, delta=0.3, seed=seed) for seed in (0, 1))  # type: ignore[arg-type]
    assert any(not np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def dominance(labels: Labels, delta: float) -> float:
    """Share of a client's commonest class, averaged over clients and seeds."""
    shares = []
    for seed in range(3):
        counts = class_counts(labels, split_clients(labels, 20, rule="dirichlet", delta=delta, seed=seed), 10)
        shares.append((counts.max(axis=1) / counts.sum(axis=1)).mean())
    return float(np.mean(shares))


def test_labels_are_less_skewed_the_larger_delta_is() -> None:
    labels = np.repeat(np.arange(10), 100)
    skew = [dominance(labels, delta) for delta in (0.01, 0.1, 0.6, 5.0, 1000.0)]
    assert skew == sorted(skew, reverse=True)
    assert skew[0] > 0.6
    assert skew[-1] < 0.25


def paper_split(labels: Labels, clients: int, delta: float, rng: np.random.Generator) -> list[list[int]]:
    """Follow the paper's rule word by word."""
    left = {c: list(np.flatnonzero(labels == c)) for c in np.unique(labels)}
    prior = rng.dirichlet([delta] * len(left), size=clients)
    parts: list[list[int]] = [[] for _ in range(clients)]
    while len(room := [k for k in range(clients) if len(parts[k]) < len(labels) // clients]):
        client = rng.choice(room)
        p = np.array([prior[client, c] if left[c] else 0 for c in left])
        parts[client].append(left[rng.choice(len(p), p=p / p.sum())].pop())
    return parts


def test_label_counts_are_distributed_as_by_the_papers_rule() -> None:
    labels, clients, delta, trials = np.repeat(np.arange(5), 20), 10, 0.4, 40

    def concentration(parts: list[Labels] | list[list[int]]) -> tuple[float, float]:
        counts = np.stack([np.bincount(labels[part], minlength=5) for part in parts])
        return (counts**2).sum(axis=1).mean(), counts.max()

    ours = [
        concentration(split_clients(labels, clients, rule="dirichlet", delta=delta, seed=seed))
        for seed in range(trials)
    ]
    rng = np.random.default_rng(0)
    papers = [concentration(paper_split(labels, clients, delta, rng)) for _ in range(trials)]
    error = np.sqrt((np.var(ours, axis=0) + np.var(papers, axis=0)) / trials)
    assert (np.abs(np.mean(ours, axis=0) - np.mean(papers, axis=0)) < 3.5 * error).all()


def test_the_floor_under_the_priors_changes_no_split_that_flower_completes() -> None:
    from datasets import Dataset
    from flwr_datasets.partitioner import InnerDirichletPartitioner

    labels = np.random.default_rng(0).integers(0, 5, 203)
    sizes = [len(part) for part in np.array_split(labels, 8)]
    flower = InnerDirichletPartitioner(sizes, partition_by="label", alpha=0.2, seed=11, shuffle=False)
    flower.dataset = Dataset.from_dict({"label": labels, "sample": np.arange(len(labels))})
    parts = split_clients(labels, 8, rule="dirichlet", delta=0.2, seed=11)
    for client, part in enumerate(parts):
        assert sorted(flower.load_partition(client)["sample"]) == part.tolist()


@pytest.mark.parametrize("seed", range(10))
def test_small_delta_terminates_after_classes_have_run_out(seed: int) -> None:
    labels = np.repeat(np.arange(10), 30)
    parts = split_clients(labels, 20, rule="dirichlet", delta=0.01, seed=seed)
    assert [len(part) for part in parts] == [15] * 20


def test_classes_that_a_subset_lacks_do_no_harm() -> None:
    labels = np.repeat([2, 7, 40], 20)
    for rule in ("iid", "dirichlet"):
        parts = split_clients(labels, 4, rule=rule, delta=0.3, seed=0)
        counts = class_counts(labels, parts, 50)
        assert counts.shape == (4, 50)
        assert counts.sum(axis=0)[[2, 7, 40]].tolist() == [20, 20, 20]


@pytest.mark.parametrize(
    ("clients", "rule", "delta", "sentence"),
    [
        (0, "iid", None, "number of clients must be at least 1, but is 0"),
        (-3, "dirichlet", 0.3, "number of clients must be at least 1, but is -3"),
        (41, "iid", None, "41 clients cannot share 40 training samples"),
        (4, "dirichlet", 0.0, "positive finite delta, but delta is 0.0"),
        (4, "dirichlet", -0.5, "positive finite delta, but delta is -0.5"),
        (4, "dirichlet", float("nan"), "positive finite delta, but delta is nan"),
        (4, "dirichlet", float("inf"), "positive finite delta, but delta is inf"),
        (4, "dirichlet", None, "positive finite delta, but delta is None"),
        (4, "random", 0.3, "must be iid or dirichlet, not 'random'"),
    ],
)
def test_impossible_splits(clients: int, rule: str, delta: float | None, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        split_clients(np.arange(40) % 4, clients, rule=rule, delta=delta, seed=0)  # type: ignore[arg-type]
