"""The base of the optimisers: which lists an update gets, and what the checks of a Triton update refuse."""

import pickle

import pytest
import torch
from torch import nn

from wallclock.kernels.optimizer import OneStateOptimizer, check_lists, number_and_tensor

CALLS = []


def recorded(params, grads, states, *, lr, decay):
    CALLS.append((list(params), list(grads), list(states), lr, decay))
    for p, g, state in zip(params, grads, states, strict=True):
        state.mul_(decay).add_(g)
        p.sub_(lr * state)


class Averaged(OneStateOptimizer):
    state_name = "average"
    option_names = ("lr", "decay")
    updates = {"eager": recorded, "triton": recorded}

    def __init__(self, params, implementation="eager"):
        super().__init__(params, {"lr": 1.0, "decay": 0.5}, implementation)


def test_a_step_updates_each_group_by_its_own_options_where_there_is_a_gradient():
    first, second, idle = (nn.Parameter(torch.full((2,), value)) for value in (1.0, 2.0, 3.0))
    optimizer = Averaged([{"params": [first, idle]}, {"params": [second], "lr": 0.1}])
    first.grad, second.grad = torch.ones(2), 2 * torch.ones(2)
    CALLS.clear()
    for _ in range(2):
        optimizer.step()
    assert [(len(params), lr, decay) for params, _, _, lr, decay in CALLS] == [(1, 1.0, 0.5), (1, 0.1, 0.5)] * 2
    assert first.tolist() == [1 - 1 - 1.5] * 2 and idle.tolist() == [3, 3]
    torch.testing.assert_close(second.detach(), torch.full((2,), 2 - 0.1 * 2 - 0.1 * 3))
    assert idle not in optimizer.state and optimizer.state[first]["average"].tolist() == [1.5, 1.5]


def test_a_step_takes_other_options_and_the_loss_of_a_closure():
    p = nn.Parameter(torch.ones(2))
    optimizer = Averaged([p])

    def closure():
        loss = (3 * p).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure, lr=0.0).item() == 6
    assert p.tolist() == [1, 1] and optimizer.state[p]["average"].tolist() == [3, 3]


def test_the_implementation_goes_with_a_copy_and_an_unknown_one_is_refused():
    assert pickle.loads(pickle.dumps(Averaged([nn.Parameter(torch.ones(1))], "triton"))).implementation == "triton"
    with pytest.raises(ValueError, match="^implementation is 'cuda'; expected eager or triton$"):
        Averaged([nn.Parameter(torch.ones(1))], "cuda")


def test_a_learning_rate_is_a_number_or_a_tensor():
    rate = torch.tensor(0.1)
    assert number_and_tensor(0.1) == (0.1, None)
    assert number_and_tensor(rate)[0] == 0.0 and number_and_tensor(rate)[1] is rate


def test_lists_that_fit_pass():
    channels_last = torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last)
    check_lists([channels_last, torch.ones(())], [torch.ones(2, 3, 4, 4), torch.ones(())], "average",
                [channels_last.clone(), torch.ones(())])  # fmt: skip


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        (([torch.ones(3)], [], [torch.ones(3)]), "^got 1 params, 0 grads, 1 averages; expected equally many$"),
        (
            ([torch.ones(3)], [torch.ones(3).half()], [torch.ones(3)]),
            "^a grad is torch.float16; expected torch.float32",
        ),
        (([torch.ones(3)], [torch.ones(4)], [torch.ones(3)]), r"^a grad is \(4,\) on cpu; expected \(3,\) on cpu$"),
        (([torch.ones(3, 2)], [torch.ones(3, 2)], [torch.ones(2, 3).T]), r"^a average has strides \(1, 3\); expected"),
        (([torch.ones(3, 4)[:, :2]], [torch.ones(3, 2)], [torch.ones(3, 2)]), "is not dense in memory"),
    ],
)
def test_lists_that_do_not_fit_are_refused(lists, message):
    params, grads, states = lists
    with pytest.raises(ValueError, match=message):
        check_lists(params, grads, "average", states)
