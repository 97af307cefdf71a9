"""Builds the network and the optimisers of a recipe."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from wallclock.kernels.muon import Muon
from wallclock.models.layers import choose
from wallclock.models.networks.darknet import Darknet
from wallclock.models.networks.sprint import Sprint
from wallclock.models.networks.wide_resnet import WideResNet
from wallclock.models.recipes.levers import unknown
from wallclock.models.recipes.recipe import SGD, MuonSGD, Recipe
from wallclock.models.recipes.schedules import Schedule

MODELS: dict[str, Callable[..., nn.Module]] = {"darknet": Darknet, "wrn_22": WideResNet, "sprint": Sprint}


def build_model(recipe: Recipe, classes: int, device: torch.device) -> nn.Module:
    """Returns the recipe's network with fresh float32 weights from torch's global generator.

    Args:
        recipe: its `model` names the network, its `model_arguments` the network's keyword arguments.
        classes: number of the network's outputs.
        device: device of the weights; on "meta" the network has shapes only.

    Raises:
        ValueError: if no network has that name (names the nearest), or it does not take the arguments.
    """
    if recipe.model not in MODELS:
        raise ValueError(unknown("model", recipe.model, MODELS))
    memory_format = torch.channels_last if recipe.implementations.channels_last else torch.contiguous_format
    try:
        with torch.device("meta" if device.type == "meta" else "cpu"):
            model = MODELS[recipe.model](classes, **recipe.model_arguments)
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise ValueError(f"model {recipe.model} does not take {recipe.model_arguments}: {error}") from error
    choose(model, recipe.implementations)
    return model.to(device=device, memory_format=memory_format)  # type: ignore[call-overload]


class ScheduledOptimizers:
    """The optimisers of one run, and the schedule of each of their parameter groups.

    Attributes:
        optimizers: torch optimisers; every trained parameter belongs to exactly one.
        moves_momentum: whether a schedule changes a momentum, which optimisers take as a number.
    """

    def __init__(self, scheduled_groups: list[tuple[torch.optim.Optimizer, list[Schedule]]]) -> None:
        self.optimizers = [optimizer for optimizer, _ in scheduled_groups]
        self._groups = [
            (group, float(group["lr"]), schedule)
            for optimizer, schedules in scheduled_groups
            for group, schedule in zip(optimizer.param_groups, schedules, strict=True)
        ]
        self._put_aside: dict[Tensor, Tensor] = {}
        self.moves_momentum = any(schedule.at(0.0).momentum is not None for _, _, schedule in self._groups)

    def set_progress(self, progress: float) -> tuple[bool, ...]:
        """Sets every group's learning rate and momentum by its schedule, and returns whether each group is frozen.

        A group whose learning rate is zero is frozen: its parameters have no gradient, and backward skips the work.
        Gradients that were kept in place are put aside meanwhile: graphs of other steps go on using their memory.

        Args:
            progress: share of the run that is done, from 0 at the first step to 1 after the last.
        """
        settings = [(group, peak_lr, schedule.at(progress)) for group, peak_lr, schedule in self._groups]
        for group, peak_lr, setting in settings:
            lr = peak_lr * setting.lr_factor
            if isinstance(group["lr"], Tensor):  # where a graph reads it
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr
            if setting.momentum is not None:
                group["momentum"] = setting.momentum
            for parameter in group["params"]:
                parameter.requires_grad_(lr != 0.0)
                if lr == 0.0 and parameter.grad is not None:
                    self._put_aside[parameter], parameter.grad = parameter.grad, None
                elif lr != 0.0 and self._put_aside:  # mostly there is nothing: this runs in every step
                    parameter.grad = self._put_aside.pop(parameter, parameter.grad)
        return tuple(setting.lr_factor == 0.0 for _, _, setting in settings)

    def frozen_at(self, progress: float) -> tuple[bool, ...]:
        """Returns whether each group is frozen at `progress`, a share of the run from 0 to 1."""
        return tuple(schedule.at(progress).lr_factor == 0.0 for _, _, schedule in self._groups)

    def zero_grad(self, *, keep_memory: bool = False) -> None:
        """Drops the gradients, or with `keep_memory` sets them to zero in the memory they have."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=not keep_memory)

    def state(self) -> dict[str, Tensor]:
        """Returns the momentum of every parameter by name, in the optimisers' own memory; zero where there is none."""
        parameters = [(o, p) for o in self.optimizers for group in o.param_groups for p in group["params"]]
        for optimizer, parameter in parameters:
            if optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return {f"momentum {i}": o.state[p]["momentum_buffer"] for i, (o, p) in enumerate(parameters)}


def build_optimizers(recipe: Recipe, model: nn.Module) -> ScheduledOptimizers:
    """Returns the recipe's optimisers over the model's trained parameters."""
    trained = [p for p in model.parameters() if p.requires_grad]
    fused = trained[0].is_cuda  # one launch for all parameters; on the CPU it needs every gradient in one dtype
    rule = recipe.optimizer

    def rate(lr: float) -> float | Tensor:
        """Returns the rate, as a tensor on the device where a CUDA graph reads it."""
        on_device = recipe.implementations.cuda_graph and trained[0].device.type != "meta"
        return torch.tensor(lr, device=trained[0].device) if on_device else lr

    if isinstance(rule, SGD):
        sgd = torch.optim.SGD(
            trained, rate(rule.lr), rule.momentum, weight_decay=rule.weight_decay, nesterov=True, fused=fused
        )
        return ScheduledOptimizers([(sgd, [rule.schedule])])
    return _build_muon_sgd(rule, model, recipe, rate, fused)


def _build_muon_sgd(
    rule: MuonSGD, model: nn.Module, recipe: Recipe, rate: Callable[[float], float | Tensor], fused: bool
) -> ScheduledOptimizers:
    if not isinstance(model, Sprint):
        raise ValueError(f"MuonSGD splits the parameters of the sprint network, got {type(model).__name__}; use SGD")
    first = len(rule.first_schedules)
    if first > len(model.groups):
        raise ValueError(f"first_schedules has {first} schedules; {recipe.model} has {len(model.groups)} groups")
    parts = [*zip(model.groups, rule.first_schedules, strict=False), (model.groups[first:], rule.schedule)]
    staged = [([p for p in part.parameters() if p.requires_grad], schedule) for part, schedule in parts]
    staged = [(parameters, schedule) for parameters, schedule in staged if parameters]
    schedules = [schedule for _, schedule in staged]
    decay = rule.weight_decay * recipe.batch_size  # SGD multiplies it by the rate again, hence the quotients below
    muon = Muon(
        [{"params": [p for p in trained if p.ndim == 4], "lr": rate(rule.filter_lr)} for trained, _ in staged],
        lr=rate(rule.filter_lr),
        momentum=rule.filter_momentum,
        implementation=recipe.implementations.optimizer,
    )
    sgd = torch.optim.SGD(
        [
            {"params": parameters, "lr": rate(lr), "weight_decay": decay / lr}
            for parameters, lr in (
                ([model.whiten.bias], rule.bias_lr),
                *(([p for p in trained if p.ndim == 1], rule.bias_lr) for trained, _ in staged),
                ([model.head.weight], rule.head_lr),
            )
        ],
        momentum=rule.momentum,
        nesterov=True,
        fused=fused,
    )
    return ScheduledOptimizers([(muon, schedules), (sgd, [rule.whiten_bias_schedule, *schedules, rule.schedule])])
