"""No shape too many is run eagerly."""

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from wallclock.bench.engine.compile import compile_network


class Doubled(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def graphs_of(make, shapes: int) -> int:
    torch._dynamo.reset()
    for size in range(1, shapes + 1):
        network = make(Doubled())  # of another variant, with the same code
        assert torch.equal(network(torch.ones(size)), 2 * torch.ones(size))
    torch._dynamo.reset()
    return counter.frame_count


counter = CompileCounter()


@pytest.fixture(autouse=True)
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Graphs are counted, and not compiled further; what was set is set back."""
    counter.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    defaults = {"recompile_limit": 8, "accumulated_recompile_limit": 256, "fail_on_recompile_limit_hit": False}
    with torch._dynamo.config.patch(defaults):
        yield


def test_every_shape_has_its_graph() -> None:
    assert graphs_of(compile_network, 20) == 20


def test_what_torch_does_by_itself_stops_at_eight() -> None:
    """Should this fail, `compile_network` is needed no more."""
    assert graphs_of(partial(torch.compile, dynamic=False), 20) == 8
