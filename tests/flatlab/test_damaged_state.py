"""What a resumed run reads beside resume.pt: clients' files and metrics that hold something else are named."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from flatlab.errors import UsageError
from flatlab.federated.state import ClientState
from flatlab.runs.metrics import Metrics

NO_STATE: list[Callable[[], object]] = [
    lambda: "text", lambda: b"bytes", lambda: 1.5, lambda: True, lambda: None, lambda: [1], lambda: {"rows": 1},
    lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
    lambda: torch.zeros(2, 3).to_sparse(), lambda: torch.zeros(2, 3, dtype=torch.complex64),
    lambda: torch.zeros(4, 3), lambda: torch.zeros(1, 3), lambda: torch.zeros(2, 3).double(),
    lambda: torch.full((2, 3), torch.nan),
]  # fmt: skip


@pytest.mark.parametrize("vectors", [("h", "c"), ("h", "last model")])
@pytest.mark.parametrize("make", NO_STATE)
@pytest.mark.filterwarnings("ignore:.*nested tensors.*")
def test_a_clients_file_that_holds_something_else_is_named(
    make: Callable[[], object], vectors: tuple[str, str], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"4-2\.pt"):
        restored(make(), vectors, tmp_path)


def test_a_last_model_that_earlier_versions_kept_is_left_out(tmp_path: Path) -> None:
    rows = torch.arange(9.0).view(3, 3)
    kept = restored(rows, ("h", "c"), tmp_path).read([4])
    assert torch.equal(torch.cat([kept["h"], kept["c"]]), rows[:2])


def restored(content: object, vectors: tuple[str, str], folder: Path) -> ClientState:
    """The state of clients of two vectors (3,), after reading `content` from the file of client 4."""
    torch.save(content, folder / "4-2.pt")
    clients = ClientState(folder, dict.fromkeys(vectors, torch.zeros(3)))
    clients.restore({4: "4-2.pt"})
    return clients


LINES = '{"round": 1, "x": 0}\n{"round": 2, "x": 0}\n'


@pytest.mark.parametrize(
    ("content", "length"),
    [
        (LINES.encode(), 5),  # in the middle of a line
        ('{"round": 1, "x": "é"}\n'.encode(), 20),  # in the middle of a letter
        (b"\xff\xfe{}\n", 5),
        (LINES.encode(), 1000),  # more than there is
    ],
)
def test_metrics_that_end_elsewhere_than_the_saved_state_says_are_named(
    content: bytes, length: int, tmp_path: Path
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"metrics\.jsonl"):
        Metrics(path).cut(1, length)
    assert path.read_bytes() == content


def test_metrics_are_cut_where_a_round_ends(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(LINES)
    Metrics(path).cut(1, LINES.index("\n") + 1)
    assert path.read_text() == LINES.splitlines(keepends=True)[0]
    Metrics(path).cut(0, 0)
    assert path.read_text() == ""
