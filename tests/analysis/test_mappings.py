"""Batches as people have them: mappings, tuples, labels inside the batch, values for every sample."""

from collections import UserDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from analysis.errors import MeasurementError
from analysis.operators import hessian
from analysis.problem import make_problem
from tests.analysis.test_models import Y, matrix


class Reads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.places, self.head = nn.Embedding(11, 3), nn.Embedding(5, 3), nn.Linear(3, 2)

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, mask: Tensor | None = None, deep: bool = False
    ) -> Tensor:
        assert position_ids.shape[0] == 1 or deep
        assert mask is None
        outputs: Tensor = self.head(torch.tanh(self.words(input_ids) + self.places(position_ids)).mean(1))
        return outputs


IDS = torch.randint(11, (9, 5), generator=torch.Generator().manual_seed(2))
PLACES = torch.arange(5)[None]


@pytest.mark.parametrize(
    "data",
    [
        (UserDict(input_ids=IDS, position_ids=PLACES), Y),
        UserDict(input_ids=IDS, position_ids=PLACES, labels=Y),
        [{"input_ids": IDS[a], "position_ids": PLACES, "mask": None, "labels": Y[a]} for a in (slice(4), slice(4, 9))],
        [(IDS, PLACES, None, Y)],
    ],
    ids=["mapping", "labels inside", "batches with None", "by position"],
)
def test_mappings_and_values_for_every_sample(data: Any) -> None:
    expected = matrix(Reads(), ({"input_ids": IDS, "position_ids": PLACES.expand(9, 5), "deep": True}, Y))
    for memory in (1 << 30, 1):
        torch.testing.assert_close(matrix(Reads(), data, memory=memory), expected)
    whole = make_problem(Reads(), "cross_entropy", data, dtype=torch.float64)
    halves = sum(hessian(whole.part(i, 3))(torch.ones(whole.size)) for i in range(3)) / 3
    torch.testing.assert_close(halves, expected.sum(1))


def test_a_row_for_every_sample_stays_one_beside_two_samples() -> None:
    expected = matrix(Reads(), ({"input_ids": IDS[:2], "position_ids": PLACES.expand(2, 5), "deep": True}, Y[:2]))
    found = matrix(Reads(), UserDict(input_ids=IDS[:2], position_ids=PLACES, labels=Y[:2]))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"input_ids": IDS}, "must hold its targets as the tensor 'labels'; it holds 'input_ids'"),
        (
            ({"input_ids": IDS, "position_ids": PLACES.expand(3, 5)}, Y),
            r"Input 'position_ids' of a batch has shape \(3, 5\)",
        ),
        (({"input_ids": IDS, "text": ["a"] * 9}, Y), "Input 'text' of a batch has the type list"),
        ([(IDS[0], torch.tensor(1))], "a row for every sample"),
    ],
)
def test_batches_that_do_not_fit_name_the_value(data: Any, reason: str) -> None:
    with pytest.raises(MeasurementError, match=reason):
        make_problem(Reads(), "cross_entropy", data)
