from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from raygen.data.plan import Plan, positions

world_sizes = st.sampled_from([1, 2, 3, 4])
shares = st.integers(1, 5)


@given(clips=st.integers(1, 200), seed=st.integers(0, 2**31 - 1), epoch=st.integers(0, 50))
def test_an_epoch_is_every_clip_once(clips: int, seed: int, epoch: int) -> None:
    plan = Plan(clips, seed)
    spans = [plan.span(p) for p in range(epoch * clips, (epoch + 1) * clips)]
    assert sorted(span.index for span in spans) == list(range(clips))
    assert all(0 <= span.start < 1 for span in spans)


@given(world_size=world_sizes, share=shares, steps=st.integers(1, 20), crash=st.integers(0, 20))
def test_ranks_share_out_the_same_order_before_and_after_a_crash(
    world_size: int, share: int, steps: int, crash: int
) -> None:
    batch = 12 * share
    seen: list[int] = []
    for step in range(steps):
        # After the crash the rest is done by one worker.
        ranks = world_size if step < crash else 1
        for rank in range(ranks):
            seen += positions(step, rank, ranks, batch)
    assert seen == list(range(steps * batch))


@given(clips=st.integers(2, 100), seed=st.integers(0, 1000))
def test_epochs_and_seeds_differ(clips: int, seed: int) -> None:
    def order(plan: Plan, epoch: int) -> list[tuple[int, float]]:
        spans = (plan.span(epoch * clips + i) for i in range(clips))
        return [(span.index, span.start) for span in spans]

    assert order(Plan(clips, seed), 0) == order(Plan(clips, seed), 0)
    assert order(Plan(clips, seed), 0) != order(Plan(clips, seed), 1)
    assert order(Plan(clips, seed), 0) != order(Plan(clips, seed + 1), 0)
