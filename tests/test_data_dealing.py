"""Exactly once, at any number of workers, through any crash: the arithmetic, without Ray."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from raygen.data.dealing import Deal, Dealing
from raygen.data.plan import Plan

bad_rows = st.sets(st.integers(0, 59), max_size=40)


def batches(
    plan: Plan, bad: set[int], cursor: int, batch: int, each: int, seed: int, count: int
) -> list[Deal]:
    """What is dealt when tasks finish in any order that `may_start` admits."""
    dealing = Dealing(cursor, batch, each, ahead=3 * each)
    shuffle = random.Random(seed)
    pending = [cursor + i * each for i in range(2000)]
    blocks: dict[int, int] = {}  # task -> rows of its block, delivered in order
    deliver = cursor
    dealt: list[Deal] = []
    while len(dealt) < count:
        window = pending[:4]
        started = [first for first in window if dealing.may_start(first)]
        first = shuffle.choice(started)
        pending.remove(first)
        good = [p for p in range(first, first + each) if plan.span(p).row not in bad]
        refused = {plan.span(p).row: "bad" for p in range(first, first + each) if p not in good}
        dealing.decoded(first, good, refused)
        blocks[first] = len(good)
        while deliver in blocks:
            dealing.arrived(deliver, blocks.pop(deliver))
            deliver += each
        while (deal := dealing.deal()) is not None:
            dealt.append(deal)
    assert dealing.refused.keys() <= bad
    return dealt[:count]


def rows(plan: Plan, deal: Deal, rank: int = 0, world_size: int = 1) -> list[int]:
    pieces = deal.share(rank, world_size)
    return [plan.span(p).row for piece in pieces for p in piece.positions]


@given(
    clips=st.integers(1, 60),
    bad=bad_rows,
    each=st.integers(1, 9),
    world_size=st.sampled_from([1, 2, 3, 4, 6]),
    crash=st.integers(0, 30),
    seed=st.integers(0, 1000),
)
def test_each_good_clip_once_an_epoch_through_a_crash_at_any_world_size(
    clips: int, bad: set[int], each: int, world_size: int, crash: int, seed: int
) -> None:
    plan, batch = Plan(clips, seed), 12
    good = set(range(clips)) - bad
    if not good:
        return
    epochs = 3
    count = len(good) * epochs // batch
    crash = min(crash, count)
    through = batches(plan, bad, 0, batch, each, seed, count)
    before = batches(plan, bad, 0, batch, each, seed + 1, crash)
    cursor = before[-1].cursor if before else 0
    # Other tasks, another order of completion, another number of workers.
    after = batches(plan, bad, cursor, batch, each + 1, seed + 2, count - crash)
    dealt = [
        [row for rank in range(world_size) for row in rows(plan, deal, rank, world_size)]
        for deal in before + after
    ]
    assert dealt == [rows(plan, deal) for deal in through]
    stream = [row for batch_rows in dealt for row in batch_rows]
    for epoch in range(len(stream) // len(good)):
        assert sorted(stream[epoch * len(good) :][: len(good)]) == sorted(good)


def test_a_task_that_runs_twice_is_dealt_once() -> None:
    dealing = Dealing(0, batch=4, each=4, ahead=100)
    for _ in range(2):
        assert dealing.may_start(0)
        dealing.decoded(0, [0, 2, 3], {7: "is empty"})
    dealing.decoded(4, [4, 5, 6, 7], {})
    dealing.arrived("a", 3)
    assert dealing.deal() is None
    dealing.arrived("b", 4)
    deal = dealing.deal()
    assert deal is not None
    assert [(p.ref, p.positions) for p in deal.pieces] == [("a", (0, 2, 3)), ("b", (4,))]
    assert (deal.cursor, dealing.refused) == (5, {7: "is empty"})


def test_no_more_than_ahead_is_decoded_but_what_is_waited_for_always_is() -> None:
    dealing = Dealing(0, batch=8, each=4, ahead=8)
    assert [dealing.may_start(first) for first in (4, 8, 12)] == [True, True, False]
    for first in (4, 8):
        dealing.decoded(first, list(range(first, first + 4)), {})
    assert not dealing.may_start(12)
    assert dealing.may_start(0)
    dealing.decoded(0, [0, 1, 2, 3], {})
    for ref in "abc":
        dealing.arrived(ref, 4)
    # The next in order, but a whole batch is there already.
    assert not dealing.may_start(12)
    assert dealing.deal() is not None
    assert dealing.may_start(12)
