"""Registers operators with `torch.library`, so that an operation's file states only its results and gradients."""

import dataclasses
import inspect
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_origin, get_type_hints

import torch
from torch import Tensor

Gradients = dict[str, Tensor | None]  # by the name of the argument; a missing argument has no gradient


def _fields(parameter: inspect.Parameter) -> dict[str, Any]:
    """Returns names and types of a parameter's fields if it is a named tuple or a dataclass, else its own."""
    kind = parameter.annotation
    bundled = hasattr(kind, "_fields") or dataclasses.is_dataclass(kind)
    fields = get_type_hints(kind) if bundled else {parameter.name: kind}
    return {name: str if get_origin(of) is Literal else of for name, of in fields.items()}


def operator(
    name: str,
    *,
    outputs: Callable[..., Any] | None = None,
    mutates: Sequence[str] = (),
    keep: Callable[[Any, tuple[Any, ...], Any], None] | None = None,
    gradients: Callable[[Any, Tensor], Gradients] | None = None,
) -> Callable[[Callable[..., Any]], torch.library.CustomOpDef]:
    """Returns a decorator that registers a function as `torch.ops.wallclock.NAME`; the compiler does not look inside.

    An argument that is a named tuple or a dataclass is an argument of the operator for each of its fields.

    Args:
        name: name of the operator.
        outputs: makes uninitialised results, from which the compiler learns shapes and strides. Its parameters name the
            function's arguments that it is called with. None for an operator that returns nothing.
        mutates: names of the operator's arguments that the function overwrites.
        keep: stores the values for backward in a context, given all arguments of the operator and results of a call.
        gradients: returns gradients, given that context and the gradient of the first result; further results have
            none. None for an operator that cannot be differentiated.
    """

    def register(function: Callable[..., Any]) -> torch.library.CustomOpDef:
        signature = inspect.signature(function)
        fields = {parameter: _fields(parameter) for parameter in signature.parameters.values()}
        flat = [
            inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=kind)
            for of_parameter in fields.values()
            for name, kind in of_parameter.items()
        ]

        def bundled(arguments: Sequence[Any]) -> dict[str, Any]:
            """Returns the function's arguments by name, given the operator's."""
            left = iter(arguments)
            return {
                parameter.name: next(left)
                if [*found] == [parameter.name]
                else parameter.annotation(*itertools.islice(left, len(found)))
                for parameter, found in fields.items()
            }

        def call(*arguments: Any) -> Any:
            return function(**bundled(arguments))

        call.__signature__ = signature.replace(parameters=flat)  # type: ignore[attr-defined]
        registered = torch.library.custom_op(f"wallclock::{name}", call, mutates_args=tuple(mutates))
        if outputs is not None:
            needed = list(inspect.signature(outputs).parameters)

            def fake(*arguments: Any) -> Any:
                given = bundled(arguments)
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
                return tuple(found.get(parameter.name) for parameter in flat)

            registered.register_autograd(backward, setup_context=setup_context)
        return registered

    return register
