"""Copies in the memory of actors, on a real Ray: only whole steps of one group are offered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import ray
import torch
from ray.exceptions import RayError

from raygen import packing
from raygen.vault import Part, Vaults


@pytest.fixture(scope="module", autouse=True)
def _local_ray() -> Iterator[None]:
    ray.init("local", num_cpus=1, include_dashboard=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture
def handles() -> Iterator[dict[str, Any]]:
    """Two vaults, as if of two nodes."""
    node = ray.get_runtime_context().get_node_id()
    handles = {name: Vaults.start(node) for name in ("a", "b")}
    yield handles
    for handle in handles.values():
        ray.kill(handle)


def part(step: int, rank: int, *, group: str = "first", world_size: int = 2) -> Part:
    states = packing.pack({f"critic/{rank}.pt": torch.tensor([step, rank])})
    state = {"step": step} if rank == 0 else None
    return Part(group, step, rank, world_size, states, [(step, rank)], state)


def told(part: Part) -> tuple[object, ...]:
    """What can be compared of a part."""
    numbers = {name: t.tolist() for name, t in packing.unpack(part.states).items()}
    return part.group, part.step, part.rank, part.state, numbers


def keep(vault: Any, *parts: Part) -> None:
    ray.get([vault.keep.remote(part) for part in parts])


def steps(handles: dict[str, Any]) -> list[int]:
    return [whole.step for whole in Vaults(handles).whole()]


def answers(vault: Any) -> bool:
    try:
        ray.get(vault.held.remote())
    except RayError:
        return False
    return True


def test_a_step_is_offered_once_every_rank_has_left_its_part(handles: dict[str, Any]) -> None:
    assert Vaults(handles).whole() == []
    keep(handles["a"], part(10, 0))
    assert steps(handles) == []
    keep(handles["b"], part(10, 1))
    (whole,) = Vaults(handles).whole()
    assert whole.step == 10
    assert [told(found) for found in whole.fetch()] == [told(part(10, 0)), told(part(10, 1))]
    keep(handles["b"], part(20, 1))
    assert steps(handles) == [10]
    keep(handles["a"], part(20, 0))
    assert steps(handles) == [10, 20]


def test_the_newest_two_are_kept(handles: dict[str, Any]) -> None:
    for step in (10, 20, 30):
        keep(handles["a"], part(step, 0), part(step, 1))
    assert steps(handles) == [20, 30]
    keep(handles["a"], part(10, 0))  # late
    assert steps(handles) == [20, 30]


def test_a_vault_that_died_is_passed_over(handles: dict[str, Any]) -> None:
    for handle in handles.values():
        keep(handle, part(10, 0), part(10, 1))
    keep(handles["a"], part(20, 0))
    keep(handles["b"], part(20, 1))
    assert steps(handles) == [10, 20]
    (_, newest) = Vaults(handles).whole()
    ray.kill(handles["b"])
    while answers(handles["b"]):
        pass
    with pytest.raises(RayError):
        newest.fetch()
    (whole,) = Vaults(handles).whole()
    assert [told(found) for found in whole.fetch()] == [told(part(10, 0)), told(part(10, 1))]
    Vaults(handles).forget_after(5)
    assert steps(handles) == []


def test_parts_of_two_groups_make_no_whole(handles: dict[str, Any]) -> None:
    # The first was lost at 20, before rank 1's part came; the second, smaller, began again at 10.
    for handle in handles.values():
        keep(handle, part(10, 0), part(10, 1), part(20, 0))
    keep(handles["a"], part(20, 1, group="second"))
    assert steps(handles) == [10]
    keep(handles["a"], part(20, 0, group="second"))
    (_, whole) = Vaults({"b": handles["b"], "a": handles["a"]}).whole()
    second = [part(20, rank, group="second") for rank in (0, 1)]
    assert [told(found) for found in whole.fetch()] == [told(sent) for sent in second]
    # What another group has left is older, whatever its steps.
    keep(handles["b"], part(12, 0, group="third", world_size=1))
    keep(handles["b"], part(14, 0, group="third", world_size=1))
    assert steps({"b": handles["b"]}) == [12, 14]


def test_what_a_rewound_run_must_not_come_back_to_is_forgotten(handles: dict[str, Any]) -> None:
    for step in (10, 20):
        keep(handles["a"], part(step, 0), part(step, 1))
        keep(handles["b"], part(step, 0), part(step, 1))
    Vaults(handles).forget_after(15)
    assert steps(handles) == [10]


def test_a_part_goes_to_its_own_node_and_to_the_next() -> None:
    vaults = Vaults({"a": 1, "b": 2, "c": 3})
    assert vaults.near("a", ["a", "a", "c"]) == [1, 3]
    assert vaults.near("c", ["a", "a", "c"]) == [3, 1]
    assert vaults.near("b", ["b", "b"]) == [2]


def test_without_vaults_there_is_nothing() -> None:
    assert Vaults({}).whole() == []
    Vaults({}).forget_after(0)


def test_states_arrive_as_they_were() -> None:
    states: dict[str, Any] = {
        "network.pt": {
            "weights": torch.randn(3, 4).T,
            "half": torch.randn(5).bfloat16(),
            "count": torch.tensor(7),
            "none": torch.empty(0, 3),
            "settings": {"lr": 1e-4, "betas": (0.0, 0.99)},
        }
    }
    packed = packing.pack(states)
    (arrived,) = packing.unpack(packed.owned()).values()
    for name, sent in states["network.pt"].items():
        if isinstance(sent, torch.Tensor):
            assert arrived[name].dtype == sent.dtype
            assert torch.equal(arrived[name], sent)
        else:
            assert arrived[name] == sent
    # What is sent on its way lies where it lay: nothing was copied.
    states["network.pt"]["count"].fill_(8)
    assert packing.unpack(packed)["network.pt"]["count"] == 8
