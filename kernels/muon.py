"""Muon: momentum with updates that a Newton-Schulz iteration orthogonalises.

Shape legend: O output channels, I input channels, H, W kernel height and width; a filter OIHW counts as a matrix
[O, I*H*W].
"""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from wallclock.kernels.multi_tensor import aligned, lying_as, memory_order, table
from wallclock.kernels.operator import operator
from wallclock.kernels.optimizer import Implementation, OneStateOptimizer, Rate, Tensors, check_lists, number_and_tensor

# Quintic coefficients chosen for the steepest slope at zero: singular values land in about [0.7, 1.2], not at one,
# which costs no accuracy (Keller Jordan, https://kellerjordan.github.io/posts/muon/).
NEWTON_SCHULZ_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
BLOCK = 1024  # elements that a program handles
PARTS = 256  # partial sums that a program adds at once, which is a bank of 262,144 elements


def newton_schulz_ref(matrix: Tensor, steps: int = 3, eps: float = 1e-7, *, dtype: torch.dtype | None = None) -> Tensor:
    """Replaces the singular values of a matrix by values near one, keeping its singular vectors.

    Args:
        matrix: matrix [M, N], of any floating dtype on any device.
        steps: number of iterations; three suffice for training.
        eps: number added to the Frobenius norm, so that a zero matrix stays zero.
        dtype: dtype of the iteration; None for bfloat16, or float64 for a float64 matrix.

    Returns:
        The matrix [M, N] in the dtype of the iteration.

    Raises:
        ValueError: if `matrix` is not two-dimensional.

    Numerics: bfloat16 throughout by default, as in the published recipe; the error is far below the spread that the
        coefficients allow.
    Cost: per step 2*M*M*N + 2*M*M*M + 2*M*M*N operations for M <= N.
    Source: https://kellerjordan.github.io/posts/muon/
    """
    if matrix.ndim != 2:
        raise ValueError(
            f"newton_schulz needs a matrix [M, N], got shape {tuple(matrix.shape)}; flatten a filter to [O, I*H*W]"
        )
    a, b, c = NEWTON_SCHULZ_COEFFICIENTS
    x = matrix.to(dtype or (torch.float64 if matrix.dtype == torch.float64 else torch.bfloat16))
    x = x / (x.norm() + eps)
    tall = x.size(0) > x.size(1)
    if tall:
        x = x.T
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


def muon_ref(params: Tensors, grads: Tensors, buffers: Tensors, *, lr: Rate, momentum: float, steps: int) -> None:
    """Defines a step of `Muon`, filter by filter and in place.

    Args:
        params: filters OIHW or matrices, floating; overwritten.
        grads: gradients of the parameters.
        buffers: running averages of the gradients; overwritten.
        lr: step size; see `kernels.optimizer.Rate`.
        momentum: decay of the average, used in Nesterov's form.
        steps: number of Newton-Schulz iterations.

    Source: https://github.com/KellerJordan/cifar10-airbench
    """
    for p, g, v in zip(params, grads, buffers, strict=True):
        v.mul_(momentum).add_(g)
        update = newton_schulz_ref((g + momentum * v).flatten(1), steps).view_as(p)
        p.copy_(p * (len(p) ** 0.5 / p.norm()) - lr * update)


def newton_schulz(stacks: Tensors, steps: int = 3, out: Tensors | None = None) -> list[Tensor]:
    """Runs the iteration of `newton_schulz_ref` on stacks of matrices, step by step.

    A stack is [B, M, N], floating, every matrix divided by its norm. The results are shaped as the stacks, and lie in
    the memory of `out` if it is given.

    Numerics: in the dtype of the stacks.
    Cost: per step 4*M*M*N + 2*M*M*M operations a matrix for M <= N, in three launches a stack.
    """
    a, b, c = NEWTON_SCHULZ_COEFFICIENTS
    made = []
    for place, stack in enumerate(stacks):
        tall = stack.size(1) > stack.size(2)
        x = stack
        into = out[place] if out is not None else None
        for left in reversed(range(steps)):
            gram = torch.bmm(x.mT, x) if tall else torch.bmm(x, x.mT)
            q = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            x = torch.baddbmm(x, *((x, q) if tall else (q, x)), beta=a, out=None if left else into)
        made.append(x if into is None or steps else into.copy_(x))
    return made


def gram_is_less(m: int, n: int, steps: int) -> bool:
    """Returns whether `newton_schulz_gram` takes fewer operations for [M, N], M <= N, than `newton_schulz`."""
    return steps > 1 and 4 * n + (8 * steps - 6) * m < steps * (4 * n + 2 * m)


def newton_schulz_gram(stacks: Tensors, steps: int = 3, out: Tensors | None = None) -> list[Tensor]:
    """Runs `newton_schulz` in the algebra of Gram matrices, where that takes fewer operations.

    Each step multiplies X by a polynomial of G = X X^T. These commute: p = a + b G + c G^2 takes G to p G p, the
    product P of all p is kept, and X is multiplied once, by P. P is kept as a multiple of the identity and the rest.
    Stacks with the same smaller side share that algebra. Arguments and result are those of `newton_schulz`, in float64.

    Raises:
        ValueError: if a stack is not float64.

    Numerics: float64, off by 1e-13 of the result's norm. Float32 would be off by up to 1.4e-5 where one singular value
        outweighs all others: there the multiple and the rest, 41 times the result, cancel, and did so with the algebra
        alone in float64 (7e-6). TensorFloat-32, which a GPU may use for float32, rounds factors to 11 bits.
    Cost: 4*M*M*N + (8*steps - 6)*M*M*M operations a matrix for M <= N: 0.47 times those of `newton_schulz` for
        [256, 2304] and three steps. From 2*N <= 3*M on that is not fewer, and `newton_schulz` is called. On a GPU
        without fast float64 choose "eager".
    """
    for x in stacks:
        if x.dtype != torch.float64:
            raise ValueError(f"newton_schulz_gram got {x.dtype}; expected torch.float64, or use newton_schulz")
    a, b, c = NEWTON_SCHULZ_COEFFICIENTS
    made = list(out) if out is not None else [torch.empty_like(x) for x in stacks]
    wide = [x.mT if x.size(1) > x.size(2) else x for x in stacks]
    less = [gram_is_less(x.size(1), x.size(2), steps) for x in wide]
    plain = [i for i, chosen in enumerate(less) if not chosen]
    newton_schulz([stacks[i] for i in plain], steps, [made[i] for i in plain])
    for _, places in _grouped((i for i, chosen in enumerate(less) if chosen), lambda i: wide[i].size(1)):
        grams = [torch.bmm(wide[i], wide[i].mT) for i in places]
        gram = grams[0] if len(grams) == 1 else torch.cat(grams)
        q = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        scale, rest = a, q
        for _ in range(steps - 1):
            h = torch.bmm(q, gram)
            gram = torch.baddbmm(torch.add(h, gram, alpha=a / 2), h, q, beta=2 * a)
            q = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            rest = torch.baddbmm(torch.add(rest, q, alpha=scale / a), q, rest, beta=a)
            scale *= a
        for i, of_stack in zip(places, rest.split([wide[i].size(0) for i in places]), strict=True):
            factors = (of_stack, wide[i]) if wide[i] is stacks[i] else (stacks[i], of_stack)  # both are symmetric
            torch.baddbmm(stacks[i], *factors, beta=scale, out=made[i])
    return made


def _grouped(items: Iterable[Any], key: Callable[[Any], Any]) -> list[tuple[Any, list[Any]]]:
    """Returns items grouped by key, with keys in the order of their first items."""
    groups: dict[Any, list[Any]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.items())


def _inner_order(x: Tensor) -> list[int]:
    """Returns the dimensions after the first, from the outermost in memory to the innermost."""
    return sorted(range(1, x.ndim), key=lambda d: x.stride()[d], reverse=True)


def muon_eager_(params: Tensors, grads: Tensors, buffers: Tensors, *, lr: Rate, momentum: float, steps: int) -> None:
    """Takes the step of `muon_ref` with foreach operations, and iterates all parameters of equal shape at once.

    The arguments are those of `muon_ref`, in any layout.

    Numerics: the iteration in bfloat16 as published, or float64 for float64 parameters.
    Cost: a product for all filters of one shape. `newton_schulz_gram`, in float64, would take a CPU longer.
    """
    torch._foreach_mul_(buffers, momentum)
    torch._foreach_add_(buffers, grads)
    directions = torch._foreach_add(grads, buffers, alpha=momentum)
    scales = torch._foreach_reciprocal(torch._foreach_norm(params))
    torch._foreach_mul_(scales, [len(p) ** 0.5 for p in params])
    torch._foreach_mul_(params, scales)
    groups = _grouped(range(len(params)), lambda i: (len(params[i]), params[i].numel(), params[i].dtype))
    stacks = []
    for (rows, _, dtype), places in groups:
        # Columns in the parameter's memory order, mostly a view: permuting them permutes those of the result alike.
        x = torch.stack([directions[i].permute(0, *_inner_order(params[i])).reshape(rows, -1) for i in places])
        x = x.to(torch.promote_types(dtype, torch.float32))
        x = x / (torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True) + 1e-7)
        stacks.append(x if dtype == torch.float64 else x.bfloat16())
    for (_, places), updates in zip(groups, newton_schulz(stacks, steps), strict=True):
        for i, update in zip(places, updates, strict=True):
            order = _inner_order(params[i])
            step = update.view(len(update), *(params[i].shape[d] for d in order)).to(params[i].dtype)
            if isinstance(lr, Tensor):
                params[i].permute(0, *order).addcmul_(step, lr.to(step.dtype), value=-1)
            else:
                params[i].permute(0, *order).sub_(step, alpha=lr)


def muon_triton_(params: Tensors, grads: Tensors, buffers: Tensors, *, lr: Rate, momentum: float, steps: int) -> None:
    """Takes the step of `muon_eager_` with everything but the matrix products in three Triton launches.

    The arguments are those of `muon_ref` in float32. Each parameter is dense in memory with O outermost (contiguous or
    channels-last), each buffer lies in its parameter's order, and a gradient in another is copied.

    Raises:
        ValueError: if a tensor is not float32, not dense, or in another memory order.

    Numerics: float32, sums of squares in a fixed order; the iteration in float64, by `newton_schulz_gram`.
    Cost: without the products, reads parameter, gradient and buffer, writes buffer and direction; reads the direction,
        writes its quotient by the norm; reads parameter and update, writes the parameter: 48 bytes a parameter.
    """
    check_lists(params, grads, "momentum_buffer", buffers)
    for p in params:
        if len(p) > 1 and p.numel() and memory_order(p)[0] != 0:
            raise ValueError(
                f'a param has strides {p.stride()}; expected output channels outermost, or use implementation="eager"'
            )
    places = [i for i, p in enumerate(params) if p.numel()]
    # Equal shapes are placed side by side, so that they form stacks of one workspace.
    places = [i for _, group in _grouped(places, lambda i: (len(params[i]), params[i].numel())) for i in group]
    torch.ops.wallclock.muon_(
        [params[i] for i in places],
        [lying_as(grads[i], params[i]) for i in places],
        [buffers[i] for i in places],
        *number_and_tensor(lr),
        momentum,
        steps,
    )


@operator("muon_", mutates=("params", "buffers"))
def _in_place(
    params: Tensors, grads: Tensors, buffers: Tensors, lr: float, lr_tensor: Tensor | None, momentum: float, steps: int
) -> None:
    from wallclock.kernels.jit.muon import average_kernel, normalise_kernel, update_kernel

    if not params:
        return
    lists = (params, grads, buffers)
    rows, wide = table(lists, BLOCK), aligned(lists) and all(p.numel() % 4 == 0 for p in params)
    n, grid = len(rows), (len(rows),)
    directions = params[0].new_empty(sum(p.numel() for p in params))
    quotients, updates = (torch.empty_like(directions, dtype=torch.float64) for _ in range(2))
    sums = params[0].new_empty(2 * n)
    average_kernel[grid](rows, directions, sums, n, momentum, ALIGNED=wide, BLOCK=BLOCK)
    normalise_kernel[grid](rows, directions, quotients, sums, EPS=1e-7, ALIGNED=wide, BLOCK=BLOCK, PARTS=PARTS)
    shapes = [
        (len(list(same)), *shape) for shape, same in itertools.groupby((len(p), p.numel() // len(p)) for p in params)
    ]
    sizes = [b * m * k for b, m, k in shapes]
    stacked, out = (
        [part.view(shape) for part, shape in zip(flat.split(sizes), shapes, strict=True)]
        for flat in (quotients, updates)
    )
    newton_schulz_gram(stacked, steps, out)
    update_kernel[grid](
        rows, updates, sums, n, rows if lr_tensor is None else lr_tensor, lr,
        LR_TENSOR=lr_tensor is not None, ALIGNED=wide, BLOCK=BLOCK, PARTS=PARTS,
    )  # fmt: skip


class Muon(OneStateOptimizer):
    """Muon for convolution filters, with each filter bank rescaled to the norm sqrt(O) before its step.

    Args:
        params: filters OIHW (or matrices), float32; or groups of them, as torch's optimisers take.
        lr: step size relative to a bank of norm sqrt(O): a number, or a tensor of one element on the device.
        momentum, steps: as in `muon_ref`.
        implementation: "eager" takes foreach operations and iterates in bfloat16; "triton" takes three launches and the
            products of Gram matrices in float64.

    Raises:
        ValueError: if a parameter has fewer than two dimensions (biases belong to another optimiser), or no
            implementation has that name.
    """

    state_name = "momentum_buffer"
    option_names = ("lr", "momentum", "steps")
    updates = {"eager": muon_eager_, "triton": muon_triton_}

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        *,
        lr: Rate,
        momentum: float = 0.6,
        steps: int = 3,
        implementation: Implementation = "eager",
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "steps": steps}, implementation)
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim < 2:
                    raise ValueError(
                        f"Muon orthogonalises matrices, got a parameter of shape {tuple(p.shape)}; give it to SGD"
                    )
