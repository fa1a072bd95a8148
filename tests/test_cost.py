from __future__ import annotations

from datetime import date

import pytest

from raygen import cost
from raygen.errors import ConfigError


def test_two_nodes_for_half_an_hour_cost_one_node_hour() -> None:
    price = cost.price("g5.xlarge")
    assert price.dollars(1800, nodes=2) == pytest.approx(price.hourly)


def test_an_unknown_node_names_the_known() -> None:
    with pytest.raises(ConfigError, match=r"no price for 'g5.tiny'.*g5\.xlarge"):
        cost.price("g5.tiny")


def test_the_table_is_dated_and_sane() -> None:
    assert date(2024, 1, 1) < date.fromisoformat(cost.TABLE_DATE) <= date.today()
    assert all(0.01 < price.hourly < 200 for price in cost.prices())
