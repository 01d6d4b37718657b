"""Inner products that accumulate in float64, whatever the vectors' type.

torch's float32 sum over 800,000 numbers is off by some 1e-5, which moves an eigenvalue by as much; vectors are
therefore taken to float64 piece by piece: on a CPU in pieces that stay in the cache, on a GPU in large ones, because
each costs some launches.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from analysis.errors import MeasurementError
from analysis.ieee import ieee
from analysis.noise import normal_numbers

_PIECE = 1 << 15  # numbers of a row, on a CPU: few enough for float64 to add up within some roundings too
_LARGE_PIECE = 1 << 25  # numbers of all rows together, elsewhere: 256 MiB in float64
_CHUNK = 1 << 10  # numbers whose products may be added up in float32,
_CHUNKS = 1 << 10  # where there are so many such sums that what each loses, 1e-7, leaves no trace in all of them
_PLAIN = 1e-15, 1e15  # lengths of vectors whose products with unit ones neither vanish in float32 nor overflow
_STANDS_OUT = 5.0  # standard deviations of the noise that a single known start vector is long


def pieces(rows: Tensor) -> Iterator[slice]:
    """Where to cut (m, p) so that a piece in float64 is as large as suits the device."""
    step = _PIECE if rows.device.type == "cpu" else max(_PIECE, _LARGE_PIECE // max(1, len(rows)))
    for start in range(0, rows.shape[1], step):
        yield slice(start, start + step)


@ieee()
def dots(left: Tensor, right: Tensor) -> Tensor:
    """left right^T in float64 for rows of equal length: (m, p), (b, p) -> (m, b)."""
    if left.device.type != "cpu":
        return _summed_products(left, right)
    total = torch.zeros(len(left), len(right), dtype=torch.float64)
    for piece in pieces(left):
        total += left[:, piece].double() @ right[:, piece].double().T
    return total


def _summed_products(left: Tensor, right: Tensor) -> Tensor:
    """The same by sums, which a GPU spreads over all of it; of a product of so few rows it may use a corner only."""
    if len(left) < len(right):
        return _summed_products(right, left).T
    total = torch.zeros(len(left), len(right), dtype=torch.float64, device=left.device)
    for piece in pieces(left):
        for column, row in enumerate(right):
            total[:, column] += (left[:, piece] * row[piece].double()).sum(1)
    return total


def dot(left: Tensor, right: Tensor) -> float:
    """The inner product of two vectors (p,)."""
    return float(dots(left[None], right[None]))


def norm(vector: Tensor) -> float:
    """The Euclidean norm of (p,)."""
    return math.sqrt(dot(vector, vector))


def quotients(vectors: Tensor, images: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """v . Av / v . v and |Av - (v . Av / v . v) v| / |v| of rows v (k, p) and their products Av, k times (p,); float64.

    A unit vector in float32 is one to seven digits, and what stands here is said in more. The products are taken one
    after the other, so that no more than one need be there.
    """
    found = [_quotient(v[None], image[None]) for v, image in zip(vectors, images, strict=True)]
    values, residuals = torch.stack(found).T
    return values, residuals


def _quotient(v: Tensor, image: Tensor) -> Tensor:
    length = dots(v, v)[0, 0]
    value = dots(v, image)[0, 0] / length
    squares = torch.zeros_like(value)
    for piece in pieces(v):
        squares += (image[:, piece].double() - value * v[:, piece].double()).square().sum()
    return torch.stack([value, (squares / length).sqrt()])


@ieee()
def combine(weights: Tensor, rows: Tensor) -> Tensor:
    """Linear combinations of rows: (b, m) weights, (m, p) -> (b, p) in the rows' type."""
    return weights.to(rows.dtype) @ rows


@ieee()
def rotate(weights: Tensor, rows: Tensor) -> None:
    """Replace the first b of the rows by linear combinations of all, in no other's memory: (b, m) weights, (m, p)."""
    for piece in pieces(rows):
        part = rows[:, piece]
        part[: len(weights)] = weights.to(rows.dtype) @ part


@ieee()
def orthogonalised(w: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """w - Q (Q^T w) and the coefficients Q^T w: rows (b, p), (n, p) -> (b, p), (n, b) float64.

    Done twice where less than half of a vector's length is left: rounding, relative to what is left, doubles at most
    otherwise (Kahan; Parlett, The Symmetric Eigenvalue Problem, 6.9: twice is enough).
    """
    total = torch.zeros(len(basis), len(w), dtype=torch.float64, device=w.device)
    for _ in range(2):
        before = torch.linalg.vector_norm(w, dim=1)
        part = _coefficients(basis, w, before)
        w, total = torch.addmm(w, part.T.to(w), basis, alpha=-1), total + part
        if (torch.linalg.vector_norm(w, dim=1) > before / 2).all() and before.isfinite().all():
            break
    return w, total


def _coefficients(basis: Tensor, w: Tensor, lengths: Tensor) -> Tensor:
    """Q^T w for orthonormal rows Q (n, p) and rows w (b, p) of about these lengths (b,): (n, b) float64.

    Of long vectors on a CPU in float32, whose sums are taken to float64 chunk by chunk: the same to nine digits of |w|,
    and as fast as Q is read from memory, a third of the time that it takes to make float64 of it.
    """
    chunks = basis.shape[1] // _CHUNK
    low, high = _PLAIN
    plain = basis.dtype == w.dtype == torch.float32 and bool(((low < lengths) & (lengths < high)).all())
    if basis.device.type != "cpu" or chunks < _CHUNKS or not plain:
        return dots(basis, w)
    cut = chunks * _CHUNK
    left, right = (rows[:, :cut].unflatten(1, (chunks, _CHUNK)) for rows in (basis, w))
    sums = torch.bmm(left.transpose(0, 1), right.permute(1, 2, 0))
    return sums.sum(0, dtype=torch.float64) + dots(basis[:, cut:], w[:, cut:])


def random_rows(count: int, size: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal rows (count, size), for a given CPU generator the same on every CPU, and on every GPU.

    A GPU makes them itself: on a CPU the 124 million numbers of GPT-2 take 3 s, as long as a hundred products there.
    """
    if like.device.type == "cpu":
        return torch.randn(count, size, dtype=torch.float64, generator=generator).to(like)
    return torch.stack([normal_numbers(size, like, generator) for _ in range(count)])


def seed_beside(start: Tensor, seed: int) -> int:
    """A seed of noise that has nothing to do with `start` (p, m), also where a search with `seed` made that.

    With the same noise again, what a search missed because its noise had nearly none of it would be missed by all that
    start from what it found.
    """
    content = start.detach().double().cpu().contiguous().numpy().tobytes()
    digest = hashlib.blake2b(content, digest_size=7, person=str(seed).encode()[-16:])
    return int.from_bytes(digest.digest(), "little")


def start_rows(
    count: int, size: int, like: Tensor, start: Tensor | None, generator: torch.Generator, noise: float = 0.01
) -> Tensor:
    """Rows (count, size) to start an iteration from: random ones, or `start` (size, m) in `noise` times its length.

    More start vectors than rows are shared out and added up; the noise keeps every eigenvector within reach.
    """
    rows = random_rows(count, size, like, generator)
    columns = like.new_empty(size, 0) if start is None else start.to(rows)
    for i in range(min(count, columns.shape[1])):
        known = columns[:, i::count].sum(1)
        length = norm(known)
        if length > 0:
            rows[i] = known / length + (noise / norm(rows[i])) * rows[i]
    return rows


def mixed_row(size: int, like: Tensor, start: Tensor | None, generator: torch.Generator) -> tuple[Tensor, float]:
    """A row (1, size) to start from: `start` (size, m), its columns added up, in Gaussian noise; and the noise's sigma.

    The row's part in any fixed unit vector is normal with that standard deviation, whatever `start` is. Less noise
    would find a vector that `start` is rich in sooner, and exclude any other later.
    """
    z = random_rows(1, size, like, generator)
    known = z.new_zeros(size) if start is None else start.to(z).sum(1)
    length = norm(known)
    if not 0 < length < math.inf:
        return z, 1.0
    return known / length + z / _STANDS_OUT, 1 / _STANDS_OUT


def require_finite(images: Tensor) -> Tensor:
    """The products themselves. Raises `MeasurementError` where one holds NaN or infinity."""
    if not torch.linalg.vector_norm(images).isfinite() and not images.isfinite().all():  # the norm alone may overflow
        raise MeasurementError(
            "A product with the matrix is not finite: a second derivative overflows or does not exist here; "
            "measure in float64, or look for a root, a logarithm or a division at zero."
        )
    return images
