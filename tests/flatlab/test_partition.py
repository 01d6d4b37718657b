import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from flatlab.cli.train import SPLITS
from flatlab.errors import UsageError
from flatlab.federated.partition import KINDS, class_counts, split_clients

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
    parts = split_clients(labels, clients, rule=rule, delta=delta, seed=seed)
    assert len(parts) == clients
    assert all(part.dtype == np.int64 and (np.diff(part) > 0).all() for part in parts)
    assert sorted(np.concatenate(parts)) == list(range(len(labels)))
    assert {len(part) for part in parts} <= {len(labels) // clients, -(-len(labels) // clients)}
    again = split_clients(labels, clients, rule=rule, delta=delta, seed=seed)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


def test_iid_gives_every_client_the_same_of_each_class_where_that_is_possible() -> None:
    labels = np.repeat(np.arange(100), 500)
    parts = split_clients(torch.from_numpy(labels), 100, rule="iid", delta=None, seed=3)
    assert (class_counts(labels, parts, 100) == 5).all()


@pytest.mark.parametrize("rule", ["iid", "dirichlet"])
def test_other_seeds_give_other_splits(rule: str) -> None:
    labels = np.repeat(np.arange(10), 20)
    first, second = (split_clients(labels, 10, rule=rule, delta=0.3, seed=seed) for seed in (0, 1))
    assert any(not np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_command_line_offers_every_kind() -> None:
    assert tuple(KINDS) == SPLITS


OPTIONS = {"delta": 0.3, "classes_per_client": 2, "shards_per_client": 2, "sigma": 1.0}


@given(
    case=labels_and_clients(),
    rule=st.sampled_from([*KINDS]),
    seed=st.integers(0, 2**63 - 1),
    delta=st.sampled_from([1e-3, 0.1, 1.0, 1e6]),
    each=st.integers(1, 4),
    sigma=st.sampled_from([0.0, 1.0, 100.0]),
)
def test_every_kind_gives_every_sample_to_one_client_and_some_to_each_or_says_why_not(
    case: tuple[Labels, int], rule: str, seed: int, delta: float, each: int, sigma: float
) -> None:
    labels, clients = case
    owners = np.random.default_rng(seed).permutation(np.arange(len(labels)) % clients)

    def split() -> list[Labels]:
        return split_clients(
            labels, clients, rule=rule, seed=seed, owners=owners,
            delta=delta, classes_per_client=each, shards_per_client=each, sigma=sigma,
        )  # fmt: skip

    try:
        parts = split()
    except UsageError:
        assert rule in ("classes", "shards")
        return
    assert len(parts) == clients
    assert all(len(part) and part.dtype == np.int64 and (np.diff(part) > 0).all() for part in parts)
    assert sorted(np.concatenate(parts)) == list(range(len(labels)))
    assert all(np.array_equal(a, b) for a, b in zip(parts, split(), strict=True))
    counts = class_counts(labels, parts, int(labels.max()) + 1)
    if rule == "classes":
        assert ((counts > 0).sum(axis=1) == each).all()
    if rule in ("column", "file"):
        assert all(len({owners[k] for k in part}) == 1 for part in parts)


def test_clients_of_two_classes_share_each_class_fairly() -> None:
    labels = np.repeat(np.arange(10), 100)
    counts = class_counts(labels, split_clients(labels, 20, rule="classes", classes_per_client=2, seed=5), 10)
    assert ((counts > 0).sum(axis=0) == 4).all()  # 40 places for 10 classes
    assert set(counts[counts > 0]) == {25}


def test_clients_of_two_shards_have_few_classes() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 100))
    counts = class_counts(labels, split_clients(labels, 20, rule="shards", shards_per_client=2, seed=5), 10)
    assert (counts.sum(axis=1) == 50).all()
    assert ((counts > 0).sum(axis=1) <= 2).all()  # a shard of 25 lies within a class of 100


def test_log_normal_sizes_have_the_spread_asked_for_and_the_classes_of_the_whole() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(4), 25_000))
    parts = split_clients(labels, 400, rule="lognormal-sizes", sigma=0.5, seed=1)
    sizes = np.array([len(part) for part in parts])
    assert np.log(sizes).std() == pytest.approx(0.5, rel=0.15)  # four standard errors
    counts = class_counts(labels, parts, 4)
    chi2 = ((counts - sizes[:, None] / 4) ** 2 / (sizes[:, None] / 4)).sum()
    assert chi2 == pytest.approx(3 * 399, abs=4 * (2 * 3 * 399) ** 0.5)


def test_dirichlet_sizes_follow_the_distribution() -> None:
    """Var(n_k / n) of Dir(a, ..., a) over K clients is (K - 1) / (K^2 (K a + 1))."""
    labels, clients, delta = np.zeros(100_000, dtype=np.int64), 10, 0.5
    shares = np.array(
        [
            [len(part) for part in split_clients(labels, clients, rule="dirichlet-sizes", delta=delta, seed=seed)]
            for seed in range(200)
        ]
    ) / len(labels)
    expected = (clients - 1) / (clients**2 * (clients * delta + 1))
    assert shares.var() == pytest.approx(expected, rel=0.25)


@pytest.mark.parametrize("rule", KINDS)
def test_ten_thousand_clients_are_split_in_seconds(rule: str) -> None:
    labels = np.repeat(np.arange(100), 500)
    began = time.process_time()
    parts = split_clients(labels, 10_000, rule=rule, seed=0, owners=np.arange(50_000) % 10_000, **OPTIONS)
    assert time.process_time() - began < 10
    assert min(len(part) for part in parts) >= 1


@pytest.mark.parametrize(
    ("rule", "options", "sentence"),
    [
        ("classes", {"classes_per_client": 11}, "cannot hold 11 of 10 classes"),
        ("classes", {"classes_per_client": 1}, "leave some of the 10 classes to nobody: ask for 3 classes"),
        ("shards", {"shards_per_client": 11}, "too few for 11 shards for each of 4 clients"),
        ("shards", {"shards_per_client": 0}, "shards_per_client must be a whole number, at least 1, but is 0"),
        ("lognormal-sizes", {"sigma": -1.0}, "sigma of 0 or more, but sigma is -1"),
        ("lognormal-sizes", {"sigma": float("nan")}, "but sigma is nan"),
        ("dirichlet-sizes", {"delta": 0.0}, "positive finite delta, but delta is 0.0"),
        ("column", {}, "do not say which client"),
    ],
)
def test_impossible_options(rule: str, options: dict[str, float], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        split_clients(np.arange(40) % 10, 4, rule=rule, seed=0, **options)  # type: ignore[arg-type]


def test_clients_of_a_column_must_be_as_many_as_it_has_values() -> None:
    with pytest.raises(UsageError, match="belong to 5 clients, not 4: add --clients 5"):
        split_clients(np.zeros(20, dtype=np.int64), 4, rule="column", seed=0, owners=np.arange(20) % 5)


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
        (4, "random", 0.3, "must be iid, .*, not 'random'"),
    ],
)
def test_impossible_splits(clients: int, rule: str, delta: float | None, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        split_clients(np.arange(40) % 4, clients, rule=rule, delta=delta, seed=0)
