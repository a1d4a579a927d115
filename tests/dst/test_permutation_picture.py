"""The picture has a line per layer in each panel, with the updates' numbers."""

from __future__ import annotations

import pytest

from padst_fx.dst import PermutationUpdate, SoftUpdate, Update
from padst_fx.dst.permutation_picture import draw_permutations


def update(step, **distances):
    parts = tuple(
        PermutationUpdate(name, considered=8, moved=2, change_rate=0.25, distance=distance)
        for name, distance in distances.items()
    )
    return Update(step, 0.3, (), (), parts)


def test_a_line_per_layer(tmp_path):
    figure = draw_permutations([update(2, a=0.5, b=0.1), update(4, a=1.0)])
    distance, rate = figure.axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in distance.lines}
    assert lines == {"a": [[2, 0.5], [4, 1.0]], "b": [[2, 0.1]]}
    assert [line.get_ydata().tolist() for line in rate.lines] == [[0.25, 0.25], [0.25]]
    figure.savefig(tmp_path / "picture.png")


def test_soft_permutations_have_a_penalty():
    learned = PermutationUpdate("a", considered=8, moved=2, change_rate=0.25, distance=0.5)
    updates = [
        Update(2, 0.3, (), (), (learned,), SoftUpdate({"b": 0.4}, {"b": 0.1}, (), 0, 0, 0)),
        Update(4, 0.3, (), (), soft=SoftUpdate({"b": 0.2}, {"b": 0.3}, ("b",), 1, 2, 0)),
    ]
    distance, rate, penalty = draw_permutations(updates).axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in distance.lines}
    assert lines == {"a": [[2, 0.5]], "b": [[2, 0.1], [4, 0.3]]}
    assert [line.get_label() for line in rate.lines] == ["a"]
    (line,) = penalty.lines
    assert line.get_label() == "b" and line.get_xydata().tolist() == [[2, 0.4], [4, 0.2]]
    assert line.get_color() == distance.lines[1].get_color()


def test_nothing_to_draw():
    with pytest.raises(ValueError, match="no update has a learned or a soft permutation"):
        draw_permutations([update(2)])
