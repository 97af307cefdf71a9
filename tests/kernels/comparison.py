"""Helpers of the operations' tests: random tensors, results by name, and their comparison with a reference."""

import torch

CONVOLUTIONS = [  # N, C, H, W, K, R, S, stride, padding; no dimension fills a tile
    (2, 5, 7, 6, 24, 3, 3, 1, 1),
    (2, 16, 5, 5, 8, 1, 1, 1, 0),
    (2, 3, 9, 8, 7, 3, 3, 2, 1),
    (1, 4, 6, 6, 5, 4, 4, 2, 1),
    (2, 6, 5, 7, 9, 1, 1, 2, 0),
    (3, 20, 1, 1, 17, 1, 1, 1, 0),
    (1, 123, 3, 3, 4, 3, 3, 1, 1),
    (1, 5, 6, 4, 3, 3, 1, 1, 0),
    (1, 2, 5, 5, 3, 2, 2, 3, 0),
    (2, 4, 9, 8, 3, 5, 3, 3, 2),
    (3, 2, 2, 2, 3, 3, 3, 1, 1),
]


def normal_numbers(shape, *, seed=9):
    """Returns float64 normal numbers of a fixed seed on the CPU."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def norm_tensors(shape, device, *, dtype=torch.float64, residual_pad=None, mean=0.5, deviation=2.0, seed=0):
    """Returns input, gamma (some negative), beta, and the residual of a norm, or None without its padding."""
    random = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(*size, dtype=torch.float64, generator=random)

    n, c, h, w = shape
    x = (mean + deviation * normal(*shape)).to(dtype)
    weight = (0.3 + normal(c).abs()) * (1 - 2 * (torch.arange(c) % 4 == 3).double())
    vectors = torch.float64 if dtype == torch.float64 else torch.float32
    tensors = [x, weight.to(vectors), normal(c).to(vectors)]
    edge = 2 * (residual_pad or 0)
    tensors.append(None if residual_pad is None else normal(n, c, h + edge, w + edge).to(dtype))
    return [None if t is None else t.to(device) for t in tensors]


def split_off(kind, options):
    """Returns the options that are fields of a named tuple, and the others."""
    fields = {name: value for name, value in options.items() if name in kind._fields}
    return fields, {name: value for name, value in options.items() if name not in fields}


def values_and_gradients(function, *tensors, dy=None):
    """Returns y and the gradients of input, gamma, beta and residual, those that are not None, under their names."""
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in tensors]
    y = function(*leaves)
    y.backward(normal_numbers(y.shape).to(y.device, y.dtype) if dy is None else dy)
    names = ("dx", "dweight", "dbias", "dresidual")
    found = {name: leaf.grad for name, leaf in zip(names, leaves, strict=True) if leaf is not None}
    return {"y": y.detach()} | found


def double(tensors):
    """Returns tensors in float64."""
    return [None if t is None else t.double() for t in tensors]


def assert_same(ours, reference, rtol=1e-6):
    """Asserts that every result is within `rtol` of the reference's largest value, of its type and shape."""
    assert ours.keys() == reference.keys()
    for name, expected in reference.items():
        assert ours[name].dtype == expected.dtype and ours[name].shape == expected.shape, name
        error = (ours[name].double() - expected.double()).abs().max() / expected.double().abs().max().clamp_min(1e-30)
        assert error <= rtol, f"{name}: {error:.2e}"


def assert_no_more_than_twice_as_wrong(ours, theirs, exact, unit):
    """Asserts that no result errs more than twice as much as PyTorch's, and a unit of the last place."""
    for name, expected in exact.items():
        scale = expected.abs().max()
        ours_off, theirs_off = ((r[name].double() - expected).abs().max() / scale for r in (ours, theirs))
        assert ours_off <= 2 * theirs_off + unit, f"{name}: {ours_off:.1e} against {theirs_off:.1e}"


def assert_each_row_is_in_one_split(cut, m, c, resident, images=1):
    """Asserts that a plan covers m rows once, by powers of two, with no more programs than may wait or fill a GPU."""
    assert (cut.splits - 1) * cut.split_rows < m <= cut.splits * cut.split_rows
    assert cut.block_c >= min(c, 64) and cut.block_c & (cut.block_c - 1) == 0
    assert cut.block_m & (cut.block_m - 1) == 0
    column_programs = -(-c // cut.block_c) * images
    if cut.persistent:
        assert cut.split_rows <= cut.block_m
        assert cut.splits == 1 or cut.splits * column_programs <= (resident or 0)
    else:
        assert cut.split_rows % cut.block_m == 0 and cut.splits * column_programs <= max(1024, column_programs)


def saved_bytes(function):
    """Returns the bytes that autograd keeps for backward while a function runs, each storage once, and its result."""
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = function()
    return sum(storages.values()), result
