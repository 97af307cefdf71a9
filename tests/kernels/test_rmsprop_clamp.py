"""RMSprop with the clamp in one launch: torch's optimiser to two units in the last place, wherever tensors lie."""

import copy

import pytest
import torch
from torch import nn

from wallclock.kernels.rmsprop_clamp import (
    BLOCK,
    RMSpropClamp,
    rmsprop_clamp_,
    rmsprop_clamp_foreach_,
    rmsprop_clamp_ref,
)

EPS = torch.finfo(torch.float32).eps
DECAY = {"alpha": 0.99, "eps": 1e-8}
SHAPES = [(1,), (5,), (123,), (3 * BLOCK,), (2 * BLOCK + 1,), (), (8, 5, 3, 3), (24, 16, 4, 4), (0, 4), (7, 1, 1, 1)]


def made(device, seed=0, scale=0.01):
    random = torch.Generator().manual_seed(seed)
    tensors = [(scale * torch.randn(shape, generator=random)).to(device) for shape in SHAPES]
    return [t.to(memory_format=torch.channels_last) if t.ndim == 4 else t for t in tensors]


def stepped(optimizer, params, steps, clamp=None, contiguous=False):
    for step in range(steps):
        for p, g in zip(params, made(params[0].device, seed=step + 1, scale=10.0 ** -(step % 7)), strict=True):
            p.grad = g.contiguous() if contiguous else g
        optimizer.step()
        if clamp is not None:
            with torch.no_grad():
                for p in params:
                    p.clamp_(-clamp, clamp)


@pytest.mark.parametrize("implementation", ["eager", "triton"])
@pytest.mark.parametrize("contiguous", [False, True], ids=["as the filter", "gradients of another layout"])
def test_many_steps_are_torchs(implementation, contiguous, device):
    ours, theirs = ([nn.Parameter(t) for t in made(device)] for _ in range(2))
    optimizer = RMSpropClamp(ours, lr=5e-5, clamp=0.01, implementation=implementation)
    known = torch.optim.RMSprop(theirs, lr=5e-5)
    stepped(optimizer, ours, 25, contiguous=contiguous)
    stepped(known, theirs, 25, clamp=0.01, contiguous=contiguous)
    for p, q in zip(ours, theirs, strict=True):
        if implementation == "eager":
            assert torch.equal(p, q)
        # 0.01 is the largest value on the way, and what a rounding along it is a unit of
        torch.testing.assert_close(p, q, rtol=0, atol=2 * EPS * 0.01)
        torch.testing.assert_close(
            optimizer.state[p]["square_avg"], known.state[q]["square_avg"], rtol=2 * EPS, atol=0.0
        )
        assert p.numel() == 0 or p.abs().max() <= 0.01


@pytest.mark.parametrize("update", [rmsprop_clamp_, rmsprop_clamp_foreach_])
@pytest.mark.parametrize("clamp", [None, 0.01])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e15])
def test_it_equals_its_reference(update, clamp, scale, device):
    params, grads, averages = made(device), made(device, 1, scale), [t.abs() for t in made(device, 2, scale)]
    exact = [[t.double() for t in tensors] for tensors in (params, grads, averages)]
    update(params, grads, averages, lr=1e-3, clamp=clamp, **DECAY)
    rmsprop_clamp_ref(*exact, lr=1e-3, clamp=clamp, **DECAY)
    for found, expected in zip(params + averages, exact[0] + exact[2], strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=4 * EPS, atol=4 * EPS * 0.01)


def test_a_step_of_a_device_learning_rate_is_the_same_and_repeats_its_bits(device):
    results = []
    for lr in (1e-3, torch.tensor(1e-3, device=device), 1e-3):
        params, grads, averages = made(device), made(device, 1), [t.abs() for t in made(device, 2)]
        rmsprop_clamp_(params, grads, averages, lr=lr, clamp=0.01, **DECAY)
        results.append(params + averages)
    for first, tensor, again in zip(*results, strict=True):
        assert torch.equal(first, tensor) and torch.equal(first, again)


def test_gradients_that_move_are_found(device):
    p, v = torch.zeros(2000, device=device), torch.zeros(2000, device=device)
    kept = []
    for value in (1.0, -1.0, 1.0):
        kept.append(torch.full((2000,), value, device=device))  # all alive: each has an address of its own
        before = p.clone()
        rmsprop_clamp_([p], [kept[-1]], [v], lr=1e-3, clamp=None, **DECAY)
        assert ((p - before) * value < 0).all()


def test_views_that_are_not_aligned_are_stepped_alone(device):
    flat, grads, averages = (torch.zeros(BLOCK + 20, device=device) for _ in range(3))
    grads += 1
    rmsprop_clamp_(
        [flat[1 : BLOCK + 4]], [grads[1 : BLOCK + 4]], [averages[1 : BLOCK + 4]], lr=1.0, clamp=None, **DECAY
    )
    assert (flat[1 : BLOCK + 4] < 0).all() and flat[0] == 0 and (flat[BLOCK + 4 :] == 0).all()


def test_nan_stays_where_it_is(device):
    p, g, v = torch.zeros(4, device=device), torch.ones(4, device=device), torch.zeros(4, device=device)
    p[0], g[1], v[2] = float("nan"), float("nan"), float("nan")
    rmsprop_clamp_([p], [g], [v], lr=1e-3, clamp=0.01, **DECAY)
    assert p.isnan().tolist() == [True, True, True, False]


def test_the_papers_sequence(device):
    """Clamp before every critic step; the generator sees the critic as its last step left it."""
    ours, theirs = ([nn.Parameter(10 * t) for t in made(device)] for _ in range(2))
    optimizer = RMSpropClamp(ours, lr=1e-3, clamp=0.01, implementation="triton")
    known = torch.optim.RMSprop(theirs, lr=1e-3)
    optimizer.clamp_()
    for step in range(6):
        with torch.no_grad():
            for q in theirs:
                q.clamp_(-0.01, 0.01)
        for p, q, g in zip(ours, theirs, made(device, step + 1), strict=True):
            p.grad, q.grad = g, g.clone()
        known.step()
        last = step % 3 == 2
        optimizer.step(clamp=not last)
        if last:
            assert max(p.abs().max().item() for p in ours if p.numel()) > 0.01
            for p, q in zip(ours, theirs, strict=True):
                torch.testing.assert_close(p, q, rtol=2 * EPS, atol=2 * EPS * 0.02)  # the largest on the way
            optimizer.clamp_()


def test_torchs_state_is_taken_over_and_ours_goes_round(device):
    ours, theirs = ([nn.Parameter(t) for t in made(device)] for _ in range(2))
    known = torch.optim.RMSprop(theirs, lr=5e-5)
    stepped(known, theirs, 2)
    optimizer = RMSpropClamp(ours, lr=1.0, clamp=0.01, implementation="triton")
    optimizer.load_state_dict(known.state_dict())
    assert optimizer.param_groups[0]["lr"] == 5e-5 and optimizer.param_groups[0]["clamp"] == 0.01
    for p, q in zip(ours, theirs, strict=True):
        assert torch.equal(optimizer.state[p]["square_avg"], known.state[q]["square_avg"])
    again = copy.deepcopy(optimizer)
    assert again.implementation == "triton"
    again.load_state_dict(optimizer.state_dict())
    stepped(again, again.param_groups[0]["params"], 1)
    with pytest.raises(ValueError, match="RMSprop with momentum"):
        optimizer.load_state_dict(torch.optim.RMSprop(theirs, lr=1e-3, momentum=0.9).state_dict())


def test_no_parameter_with_a_gradient_is_no_step(device):
    optimizer = RMSpropClamp([nn.Parameter(torch.ones(3, device=device))], implementation="triton")
    optimizer.step()
    rmsprop_clamp_([], [], [], lr=1e-3, clamp=None, **DECAY)
    assert optimizer.param_groups[0]["params"][0].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("p", "g", "v", "message"),
    [
        (torch.zeros(3).bfloat16(), torch.zeros(3), torch.zeros(3), "param is torch.bfloat16; expected torch.float32"),
        (torch.zeros(3), torch.zeros(3).half(), torch.zeros(3), "grad is torch.float16"),
        (torch.zeros(3), torch.zeros(4), torch.zeros(3), r"grad is \(4,\)"),
        (torch.zeros(4, 6)[:, :3], torch.zeros(4, 3), torch.zeros(4, 3), "not dense in memory"),
        (torch.zeros(4, 6), torch.zeros(4, 6), torch.zeros(6, 4).T, "square_avg has strides"),
    ],
)
def test_what_does_not_fit_is_refused(p, g, v, message):
    with pytest.raises(ValueError, match=message):
        rmsprop_clamp_([p], [g], [v], lr=1e-3, clamp=None, **DECAY)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"lr": -1.0}, "lr >= 0"), ({"clamp": 0.0}, "positive number"), ({"implementation": "cuda"}, "eager or triton")],
)
def test_numbers_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        RMSpropClamp([nn.Parameter(torch.zeros(3))], **fields)


def test_opcheck_finds_nothing_and_it_compiles_without_a_graph_break(device):
    params, grads, averages = made(device), made(device, 1), [t.abs() for t in made(device, 2)]
    torch.library.opcheck(torch.ops.wallclock.rmsprop_clamp_, (params, grads, averages, 1e-3, None, 0.99, 1e-8, 0.01))
    compiled = torch.compile(rmsprop_clamp_, fullgraph=True, backend="aot_eager")
    results = []
    for update in (rmsprop_clamp_, compiled):
        tensors = [t.clone() for t in params], [t.clone() for t in averages]
        update(tensors[0], grads, tensors[1], lr=1e-3, clamp=0.01, **DECAY)
        results.append(tensors[0] + tensors[1])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
