"""What a CUDA graph does to a step, on a CPU: its operations on its memory, and nothing else."""

from collections.abc import Callable
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map


class Outside:
    """A tensor that a graph found, not made: it knows where the memory lies, and does not keep it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._storage = StorageWeakRef(tensor.untyped_storage())
        self._dtype = tensor.dtype
        self._place = tensor.storage_offset(), tensor.size(), tensor.stride()

    def found(self) -> torch.Tensor:
        """Returns the tensor."""
        storage = torch.UntypedStorage._new_with_weak_ptr(self._storage.cdata)
        assert storage is not None, f"memory of {tuple(self._place[1])} was freed, and a replay uses it"
        return torch.empty(0, dtype=self._dtype).set_(storage, *self._place)


def _memory(leaf: Any) -> int | None:
    """Which memory a tensor lies in; None for what is no tensor."""
    return leaf.untyped_storage()._cdata if isinstance(leaf, torch.Tensor) else None


class Recording(TorchDispatchMode):
    """Carries operations out and notes them; what they make is kept, as a graph's own memory is."""

    def __init__(self) -> None:
        super().__init__()
        self._made: set[int] = set()
        self._calls: list[tuple[Callable[..., Any], Any, Any]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert torch.Tag.nondeterministic_seeded not in function.tags, f"{function} draws: a replay would draw the same"
        assert torch.Tag.data_dependent_output not in function.tags, f"{function} asks the host"
        masked = any(isinstance(leaf, torch.Tensor) and leaf.dtype == torch.bool for leaf in tree_leaves(args))
        shaped = torch.Tag.dynamic_output_shape in function.tags and (masked or function != torch.ops.aten.index.Tensor)
        assert not shaped, f"{function} asks the host for a shape"
        given = tree_map(self._kept, (args, kwargs or {}))
        out = function(*args, **(kwargs or {}))
        given_at = {_memory(leaf) for leaf in tree_leaves((args, kwargs))}
        made = tree_map(lambda leaf: None if _memory(leaf) in given_at else leaf, out)
        self._made |= {_memory(leaf) for leaf in tree_leaves(made)} - {None}
        self._calls.append((function, given, made))
        return out

    def _kept(self, leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        return leaf.detach() if _memory(leaf) in self._made else Outside(leaf)

    @torch.no_grad()
    def replay(self) -> None:
        """Does the same operations on the same memory."""
        for function, given, made in self._calls:
            args, kwargs = tree_map(lambda leaf: leaf.found() if isinstance(leaf, Outside) else leaf, given)
            out = function(*args, **kwargs)
            for before, now in zip(tree_leaves(made), tree_leaves(out), strict=True):
                if isinstance(before, torch.Tensor):
                    before.copy_(now)
