"""Time by operator: the step's own operators, each once, longest first, and nothing lost."""

import torch

from bench.profiling import SHOWN, operator_times


def test_operators_of_a_step_are_told_with_their_calls(device):
    x = torch.randn(200, 200, device=device, requires_grad=True)

    def step():
        for _ in range(3):
            (x @ x).relu().sum().backward()

    found = operator_times(step, device)
    by_name = {one.name: one for one in found}
    assert by_name["mm"].calls == 9 and by_name["relu"].calls == 3  # forward, and two gradients each
    seconds = [one.seconds for one in found]
    assert all(0 < each < 10 for each in seconds)
    shown = seconds[:-1] if found[-1].name == "all others" else seconds
    assert shown == sorted(shown, reverse=True) and len(shown) <= SHOWN


def test_what_is_too_much_to_show_is_told_together(device, monkeypatch):
    monkeypatch.setattr("bench.profiling.SHOWN", 1)
    x = torch.randn(50, device=device)
    first, others = operator_times(lambda: x.sin().cos().exp().sum(), device)
    assert others.name == "all others" and others.calls >= 3 and first.calls == 1
