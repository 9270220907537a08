"""The metadata of a version list the studies that it, or one before it, has learned."""

from types import SimpleNamespace
from typing import Any

import pytest

from lib.trainers.seen_studies import seen_studies, studies_metadata

STUDIES: list[Any] = [SimpleNamespace(key=f"{n:064x}"[::-1]) for n in range(4)]


def served(network_id: str, metadata: dict[str, str]) -> Any:
    """Return served weights; those with the id "base" are the ones that the server started with."""
    weights = SimpleNamespace(network_id=network_id, metadata=metadata)

    class Served:
        base = SimpleNamespace(network_id="base")

        def __call__(self) -> Any:
            return weights

    return Served()


@pytest.mark.parametrize("network_id", ["base", "published"])
def test_the_list_is_read_as_it_was_written(network_id: str) -> None:
    metadata = studies_metadata(served("base", {})(), STUDIES[:2])
    assert metadata["studies"] == '["0000000000000000","1000000000000000"]'
    assert seen_studies(STUDIES, served(network_id, metadata)) == STUDIES[:2]
    later = studies_metadata(served(network_id, metadata)(), STUDIES[3:])
    assert seen_studies(STUDIES, served(network_id, later)) == STUDIES[:2] + STUDIES[3:]


def test_without_a_list_a_version_may_have_seen_all_and_the_first_weights_none() -> None:
    assert seen_studies(STUDIES, served("base", {})) == []
    assert seen_studies(STUDIES, served("published", {})) == STUDIES
