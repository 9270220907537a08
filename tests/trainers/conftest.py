"""Fixtures that the tests of training share."""

from collections.abc import Iterator

import pytest
import torch
from small_site import Site


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Run small networks on one thread, which is faster, above all beside other processes.

    The scope is the module, so that it is there before the modules' fixtures train.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="module")
def one_series() -> Iterator[None]:
    """Judge on one series of clicks in each study."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lib.trainers.served_judge.SERIES", 1)
        yield


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Return a site whose studies stay as they are; each test trains in a model folder of its own.

    A test that changes studies makes a `Site` for itself.
    """
    return Site(tmp_path_factory.mktemp("site"))
