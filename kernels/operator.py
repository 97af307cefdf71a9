"""Registers operators with `torch.library`, so that an operation's file states only its results and gradients."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Gradients = dict[str, Tensor | None]  # by the name of the argument; a missing argument has no gradient


def operator(
    name: str,
    *,
    outputs: Callable[..., Any] | None = None,
    mutates: Sequence[str] = (),
    keep: Callable[[Any, tuple[Any, ...], Any], None] | None = None,
    gradients: Callable[[Any, Tensor], Gradients] | None = None,
) -> Callable[[Callable[..., Any]], torch.library.CustomOpDef]:
    """Returns a decorator that registers a function as `torch.ops.wallclock.NAME`; the compiler does not look inside.

    Args:
        name: name of the operator.
        outputs: makes uninitialised results, from which the compiler learns shapes and strides. Its parameters name the
            arguments that it is called with. None for an operator that returns nothing.
        mutates: names of the arguments that the function overwrites.
        keep: stores the values for backward in a context, given all arguments and results of a call.
        gradients: returns gradients, given that context and the gradient of the first result; further results have
            none. None for an operator that cannot be differentiated.
    """

    def register(function: Callable[..., Any]) -> torch.library.CustomOpDef:
        signature = inspect.signature(function)
        registered = torch.library.custom_op(f"wallclock::{name}", function, mutates_args=tuple(mutates))
        if outputs is not None:
            needed = list(inspect.signature(outputs).parameters)

            def fake(*arguments: Any, **named: Any) -> Any:
                given = signature.bind(*arguments, **named).arguments
                return outputs(*(given[argument] for argument in needed))

            registered.register_fake(fake)
        if keep is not None and gradients is not None:

            def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
                ctx.set_materialize_grads(False)
                if isinstance(output, tuple):
                    ctx.mark_non_differentiable(*output[1:])
                keep(ctx, inputs, output)

            def backward(ctx: Any, dy: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
                found = {} if dy is None else gradients(ctx, dy)
                return tuple(found.get(argument) for argument in signature.parameters)

            registered.register_autograd(backward, setup_context=setup_context)
        return registered

    return register
