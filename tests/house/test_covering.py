"""What the default run takes of a product of parameters: few points, in which all values meet."""

from __future__ import annotations

from itertools import combinations, product

import pytest

from helpers.covering import covering

SIZES = [(3,), (2, 2), (19, 2, 2), (6, 5, 4, 3)]


@pytest.mark.parametrize("together", [1, 2, 3])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_all_values_meet(sizes: tuple[int, ...], together: int) -> None:
    points = list(product(*map(range, sizes)))
    kept = covering(points, together)
    for axes in combinations(range(len(sizes)), together):
        met = {tuple(points[k][axis] for axis in axes) for k in kept}
        assert met == set(product(*(range(sizes[axis]) for axis in axes)))


@pytest.mark.parametrize(
    ("sizes", "together", "most"),
    [((19, 2), 1, 19), ((19, 2, 2), 2, 38), ((19, 4, 2, 2), 2, 76), ((6, 5, 4, 3), 2, 36)],
)
def test_few_points_suffice(sizes: tuple[int, ...], together: int, most: int) -> None:
    assert len(covering(list(product(*map(range, sizes))), together)) <= most


def test_a_product_with_gaps_keeps_what_is_there() -> None:
    points = [(0, 0, 0), (0, 0, 1), (1, 2, 0)]
    assert covering(points, 2) == {0, 1, 2}
    assert covering([(0, 0), (0, 1), (1, 0), (1, 1)], 1) in ({0, 3}, {1, 2})
