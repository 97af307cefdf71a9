"""Muon against its definition by singular value decomposition, and its step against the formula."""

import copy

import pytest
import torch
from torch import nn
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode

from wallclock.kernels import muon
from wallclock.kernels.muon import (
    NEWTON_SCHULZ_COEFFICIENTS,
    Muon,
    gram_is_less,
    muon_triton_,
    newton_schulz,
    newton_schulz_gram,
    newton_schulz_ref,
)


def by_svd(matrix: torch.Tensor, steps: int) -> torch.Tensor:
    """The same quintic, applied to the singular values alone, in float64."""
    a, b, c = NEWTON_SCHULZ_COEFFICIENTS
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / values.norm()
    for _ in range(steps):
        values = a * values + b * values**3 + c * values**5
    return left @ values.diag() @ right


@pytest.mark.parametrize("steps", [0, 1, 3, 5])
@pytest.mark.parametrize("shape", [(5, 123), (123, 5), (64, 64), (1, 7)])
def test_the_iteration_acts_on_the_singular_values_alone(shape, steps):
    matrix = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(newton_schulz_ref(matrix, steps, eps=0.0), by_svd(matrix, steps), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "every other column"])
@pytest.mark.parametrize("shape", [(24, 576), (257, 31)])
def test_bfloat16_stays_near_the_exact_iteration(shape, layout):
    (rows, columns), random = shape, torch.Generator().manual_seed(0)
    made = {
        "contiguous": lambda: torch.randn(rows, columns, generator=random),
        "transposed": lambda: torch.randn(columns, rows, generator=random).T,
        "every other column": lambda: torch.randn(rows, 2 * columns, generator=random)[:, ::2],
    }
    matrix = made[layout]()
    result = newton_schulz_ref(matrix)
    assert result.shape == shape and result.dtype == torch.bfloat16
    error = (result.double() - by_svd(matrix, 3)).norm() / by_svd(matrix, 3).norm()
    assert error < 0.04  # 0.020 to 0.024 seen; the iteration's own spread of singular values is ten times that


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e6, 1e30])
def test_the_scale_of_a_gradient_does_not_matter(scale):
    matrix = torch.randn(16, 40, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    torch.testing.assert_close(newton_schulz_ref(matrix * scale, eps=0.0), newton_schulz_ref(matrix, eps=0.0))
    assert newton_schulz_ref(torch.zeros(3, 4)).abs().max() == 0


def spectrum(shape, values):
    """A matrix with the given singular values."""
    random = torch.Generator().manual_seed(5)
    left, _ = torch.linalg.qr(torch.randn(shape[0], min(shape), dtype=torch.float64, generator=random))
    right, _ = torch.linalg.qr(torch.randn(shape[1], min(shape), dtype=torch.float64, generator=random))
    return left @ (torch.tensor(values(min(shape)), dtype=torch.float64).diag() @ right.T)


SPECTRA = {
    "flat": lambda n: [1.0] * n,
    "ten decades": lambda n: [10 ** (-10 * i / n) for i in range(n)],
    "rank one": lambda n: [1.0] + [0.0] * (n - 1),
    "one large, others small": lambda n: [1.0] + [1e-3] * (n - 1),
    "one large, others tiny": lambda n: [1.0] + [1e-5] * (n - 1),
    "two large": lambda n: [1.0, 1.0][:n] + [1e-4] * (n - 2),
}


def error(found, exact):
    return ((found.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("spectrum_name", SPECTRA)
@pytest.mark.parametrize("shape", [(64, 216), (123, 24), (48, 48), (1, 7)])
def test_stacks_and_the_gram_form_are_the_plain_iteration(shape, spectrum_name):
    matrix = spectrum(shape, SPECTRA[spectrum_name])
    stack = torch.stack([matrix / matrix.norm(), torch.zeros_like(matrix)])
    for steps in (0, 1, 3):
        exact = newton_schulz_ref(matrix, steps, eps=0.0)
        for iteration in (newton_schulz, newton_schulz_gram):
            ((ours, zero),) = iteration([stack], steps)
            assert error(ours, exact) < 1e-10 and not zero.any()
    published = error(newton_schulz_ref(matrix.float()), newton_schulz_ref(matrix))
    assert error(newton_schulz([stack.bfloat16()])[0][0], newton_schulz_ref(matrix)) < 1.5 * published + 0.01


@pytest.mark.parametrize("spectrum_name", SPECTRA)
@pytest.mark.parametrize("shape", [(40, 90), (12, 12)])
def test_a_triton_update_is_that_of_the_plain_iteration(shape, spectrum_name, device):
    """To 1e-5 of its norm; the float32 of the parameter itself is kept out of it."""
    gradient = spectrum(shape, SPECTRA[spectrum_name]).float().to(device)
    p = torch.zeros(shape, device=device)
    p[0, 0] = 1.0  # becomes the root of the channels, less the update
    muon_triton_([p], [gradient], [torch.zeros_like(p)], lr=1.0, momentum=0.0, steps=3)
    p[0, 0] -= shape[0] ** 0.5
    assert error(-p.cpu(), newton_schulz_ref(gradient.double().cpu(), 3)) < 1e-5


@pytest.mark.parametrize(("m", "n", "less"), [(64, 216, True), (2, 4, True), (2, 3, False), (48, 48, False)])
def test_the_gram_form_is_taken_where_it_is_less(m, n, less, monkeypatch):
    assert gram_is_less(m, n, 3) == less and not gram_is_less(m, n, 1)
    seen = []
    monkeypatch.setattr(muon, "newton_schulz", lambda stacks, *others: seen.extend(stacks))
    muon.newton_schulz_gram([torch.eye(m, n, dtype=torch.float64)[None]], 3)
    assert len(seen) == (not less)
    with pytest.raises(ValueError, match=r"got torch.float32; expected torch.float64"):
        muon.newton_schulz_gram([torch.eye(m, n)[None]], 3)


FILTERS = [(8, 5, 3, 3), (8, 5, 3, 3), (4, 8, 3, 3), (40, 3, 1, 1), (3, 123), (8, 5, 3, 3), (32, 16, 3, 3)]


@pytest.mark.parametrize("implementation", ["eager", "triton"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_step_is_the_formula(memory_format, implementation, device):
    random = torch.Generator().manual_seed(3)

    def made():
        tensors = [torch.randn(shape, generator=random).to(device) for shape in FILTERS]
        return [t.contiguous(memory_format=memory_format) if t.ndim == 4 else t for t in tensors]

    banks = [nn.Parameter(t) for t in made()]
    expected, averages = [p.detach().clone() for p in banks], [torch.zeros_like(p) for p in banks]
    optimizer = Muon(banks, lr=0.1, momentum=0.6, implementation=implementation)
    for step in range(3):
        for i, gradient in enumerate(made()):
            banks[i].grad = gradient.contiguous()  # of another layout than a channels-last filter
            averages[i] = 0.6 * averages[i] + gradient
            flat = (gradient + 0.6 * averages[i]).flatten(1)
            update = newton_schulz_ref(flat, dtype=torch.float64).float().view_as(gradient)
            expected[i] = expected[i] * len(gradient) ** 0.5 / expected[i].norm() - 0.1 * update
        optimizer.step()
        for p, wanted, average in zip(banks, expected, averages, strict=True):
            # The published iteration rounds to bfloat16: its update is off by 0.03 of its norm, times lr.
            tolerance = 1e-5 if implementation == "triton" else 0.1 * 0.03 * (step + 1)
            assert (p - wanted).norm() <= tolerance * max(1, wanted.norm().item())
            torch.testing.assert_close(optimizer.state[p]["momentum_buffer"], average)


@pytest.mark.parametrize("implementation", ["eager", "triton"])
def test_zero_gradients_only_rescale_and_nan_stays(implementation, device):
    still, broken = (nn.Parameter(torch.ones(4, 9, device=device)) for _ in range(2))
    still.grad, broken.grad = torch.zeros_like(still), torch.full_like(broken, float("nan"))
    Muon([still, broken], lr=0.1, implementation=implementation).step()
    torch.testing.assert_close(still.detach(), torch.full_like(still, 1 / 3))
    assert broken.isnan().all()


def test_the_triton_step_launches_less_repeats_its_bits_and_keeps_its_state(device):
    torch.manual_seed(0)
    operations = {}
    results = []
    for implementation in ("eager", "triton", "triton"):
        random = torch.Generator().manual_seed(0)
        banks = [nn.Parameter(torch.randn(s, generator=random).to(device)) for s in FILTERS]
        for p in banks:
            p.grad = p.detach().clone()
        optimizer = Muon(banks, lr=0.1, implementation=implementation)
        optimizer.step()
        with Launches() as seen:
            optimizer.step()
        operations[implementation] = seen.count + 3 * (implementation == "triton")
        results.append([p.detach() for p in banks])
        assert copy.deepcopy(optimizer).implementation == implementation
        assert set(optimizer.state_dict()["param_groups"][0]) >= {"lr", "momentum", "steps", "params"}
    assert all(torch.equal(a, b) for a, b in zip(results[1], results[2], strict=True))
    with Launches() as seen:
        for p in banks:
            newton_schulz_ref(p.grad.flatten(1))
    # The plain step takes seven more for each filter: average, direction, norm and rescaling, update.
    assert operations["triton"] < min(operations["eager"], seen.count + 7 * len(banks))


class Launches(TorchDispatchMode):
    """Counts operations that compute, those within our own too; views and empty memory launch nothing."""

    FREE = ("view", "split", "empty", "detach", "transpose", "permute", "diagonal", "expand", "t.", "unbind", "alias")
    # and what stands for a launch in the interpreter
    FREE += ("new_empty", "set_", "copy_", "mT", "promote_types")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        if name.startswith("profiler."):
            return function(*args, **(kwargs or {}))
        own = OPDEFS.get(name.removesuffix(".default").replace(".", "::", 1))
        if own is not None:
            with self:
                return own._init_fn(*args, **(kwargs or {}))
        self.count += not name.removeprefix("aten.").lstrip("_").startswith(self.FREE)
        return function(*args, **(kwargs or {}))


def test_opcheck_finds_nothing_and_what_does_not_fit_is_refused(device):
    tensors = [[torch.randn(s, device=device) for s in FILTERS[:3]] for _ in range(3)]
    torch.library.opcheck(torch.ops.wallclock.muon_, (*tensors, 0.1, None, 0.6, 3))
    half = torch.zeros(2, 3, device=device).half()
    with pytest.raises(ValueError, match="param is torch.float16"):
        muon_triton_([half], [half], [half], lr=0.1, momentum=0.6, steps=3)
    turned = torch.zeros(3, 2, device=device).T
    with pytest.raises(ValueError, match="output channels outermost"):
        muon_triton_([turned], [turned], [turned], lr=0.1, momentum=0.6, steps=3)
    with pytest.raises(ValueError, match="expected eager or triton"):
        Muon([nn.Parameter(torch.zeros(2, 3))], lr=0.1, implementation="cuda")


@pytest.mark.parametrize("implementation", ["eager", "triton"])
def test_a_rate_on_the_device_is_a_rate(implementation, device):
    moved = []
    for lr in (0.1, torch.tensor(0.1, device=device)):
        torch.manual_seed(0)
        filters = [nn.Parameter(torch.randn(s).to(device)) for s in FILTERS[:2]]
        for p in filters:
            p.grad = torch.ones_like(p) * p.detach().flip(0)
        optimizer = Muon(filters, lr=lr, implementation=implementation)
        optimizer.step()
        moved.append([p.detach().clone() for p in filters])
    for by_number, by_tensor in zip(*moved, strict=True):
        torch.testing.assert_close(by_tensor, by_number, rtol=1e-6, atol=1e-7)


def test_parameters_without_a_gradient_stay_and_a_closure_is_evaluated_with_gradients():
    moved, still = nn.Parameter(torch.randn(3, 5)), nn.Parameter(torch.ones(3, 5))
    optimizer = Muon([moved, still], lr=0.1)

    def closure():
        loss = moved.square().sum()
        loss.backward()
        return loss

    before = moved.detach().clone()
    assert optimizer.step(closure).item() == pytest.approx(before.square().sum().item())
    assert not torch.equal(moved, before) and torch.equal(still, torch.ones(3, 5))


def test_vectors_are_refused():
    with pytest.raises(ValueError, match="give it to SGD"):
        Muon([nn.Parameter(torch.zeros(3))], lr=0.1)
    with pytest.raises(ValueError, match="needs a matrix"):
        newton_schulz_ref(torch.zeros(2, 3, 4))
