"""Parameter counts, shapes, learning and the lesson's bug, for every network."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from wallclock.models.build import build_model, build_optimizers
from wallclock.models.networks.darknet import Darknet
from wallclock.models.networks.sprint import Sprint, whitening_filters
from wallclock.models.networks.wide_resnet import WideResNet
from wallclock.models.recipes import RECIPES
from wallclock.models.recipes.override import override
from wallclock.models.recipes.schedules import LinearDecay

CPU = torch.device("cpu")
PARAMETERS = {
    **dict.fromkeys(("sprint", "sprint-jpeg", "sprint94"), 1_972_792),
    **{"sprint95": 4_606_520, "sprint96": 9_918_776, "wrn22": 9_658_458, "darknet": 31_410_922},
}


@pytest.mark.parametrize("name", RECIPES)
def test_parameter_count_output_shape_and_memory_format(name):
    model = build_model(RECIPES[name]("cpu"), 10, CPU)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert model(torch.randn(3, 3, 32, 32)).shape == (3, 10)
    filters = [p for p in model.parameters() if p.ndim == 4]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in filters)


def test_every_trained_parameter_has_exactly_one_optimizer():
    for recipe in (make("cpu") for make in RECIPES.values()):
        model = build_model(recipe, 10, CPU)
        owned = [p for o in build_optimizers(recipe, model).optimizers for g in o.param_groups for p in g["params"]]
        assert len(owned) == len({id(p) for p in owned})
        assert {id(p) for p in owned} == {id(p) for p in model.parameters() if p.requires_grad}


@pytest.mark.parametrize("name", ["sprint", *(pytest.param(n, marks=pytest.mark.slow) for n in ("wrn22", "darknet"))])
def test_every_parameter_moves_and_a_fixed_batch_is_learnt(name):
    torch.manual_seed(0)
    recipe = RECIPES[name]("cpu")
    if name == "sprint":
        recipe = replace(recipe, model_arguments={"widths": (16, 64, 64)})
    model = build_model(recipe, 10, CPU)
    optimizers = build_optimizers(recipe, model)
    images, labels = torch.randn(16, 3, 32, 32), torch.arange(16) % 10
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    reduction = "sum" if name == "sprint" else "mean"
    losses = []
    for _ in range(10):
        optimizers.set_progress(0.02)
        for group in optimizers.optimizers[0].param_groups:
            group["lr"] *= 0.1  # the batch is a sixteenth of the recipes'
        loss = nn.functional.cross_entropy(model(images), labels, reduction=reduction)
        losses.append(loss.item())
        loss.backward()
        for optimizer in optimizers.optimizers:
            optimizer.step()
        optimizers.zero_grad()
    assert min(losses[-2:]) < 0.7 * losses[0]
    assert [n for n, p in model.named_parameters() if n in before and torch.equal(p, before[n])] == []


def test_the_lessons_in_place_residual_cannot_be_trained_and_ours_can():
    class LessonResidual(nn.Module):
        def __init__(self, branch):
            super().__init__()
            self.branch = branch

        def forward(self, x):
            return x.add_(self.branch(x))

    model = Darknet(10, num_blocks=(1,), base_channels=4)
    images = torch.randn(2, 3, 32, 32)
    model(images).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    model.features[2] = LessonResidual(model.features[2].branch)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        model(images).sum().backward()


def test_darknet_halves_the_map_in_every_group_but_the_second():
    model = Darknet(10, base_channels=2).eval()
    edges, x = [], torch.randn(1, 3, 32, 32)
    for layer in model.features:
        x = layer(x)
        edges.append(x.shape[-1])
    assert sorted(set(edges), reverse=True) == [32, 16, 8, 4, 2]
    assert model.features[3][0].stride == (1, 1)  # the first convolution of group two


def test_wide_resnet_shortcut_is_taken_after_the_activation():
    model = WideResNet(10, blocks=1, widen=1)
    block = model.features[1].eval()
    nn.init.zeros_(block.convs[-1].weight)
    x = torch.randn(2, 16, 8, 8)
    expected = torch.relu(x / (1 + 1e-5) ** 0.5)
    torch.testing.assert_close(block(x.clone()), expected)


def test_whitening_filters_whiten():
    images = torch.randn(64, 3, 12, 12).cumsum(2).cumsum(3)  # strongly correlated neighbours
    filters = whitening_filters(images, eps=0.0)
    responses = nn.functional.conv2d(images, filters[:12]).permute(0, 2, 3, 1).reshape(-1, 12)
    torch.testing.assert_close(responses.T @ responses / len(responses), torch.eye(12), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(filters[12:], -filters[:12])


@pytest.mark.slow
def test_compiled_sprint_has_the_gradients_of_eager_in_bfloat16():
    """Compiled code keeps maps unrounded: what compares them with a rounded maximum divides by a count of zero."""
    torch.manual_seed(0)
    model = Sprint(10, widths=(8, 8, 8)).to(memory_format=torch.channels_last)
    images = torch.randn(32, 3, 32, 32).to(memory_format=torch.channels_last)
    model.initialise_from(images)
    gradients = []
    for network in (model, torch.compile(model, dynamic=False)):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(images)
        nn.functional.cross_entropy(logits.float(), torch.arange(32) % 10).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    eager, compiled = gradients
    assert (eager - compiled).norm() < 0.1 * eager.norm()


@pytest.mark.parametrize("size", [17, 20, 24, 28, 32, 33])
def test_sprint_accepts_smaller_and_odd_images(size):
    assert Sprint(10, widths=(8, 8, 8))(torch.randn(2, 3, size, size)).shape == (2, 10)


def test_a_deep_group_adds_what_its_first_convolution_gives():
    group = Sprint(10, widths=(24, 8, 8), depth=3).groups[0].eval()
    x = torch.randn(2, 24, 8, 8)
    first = group.norm_act1(nn.functional.max_pool2d(group.conv1(x), 2))
    nn.init.zeros_(group.conv3.weight)
    torch.testing.assert_close(group(x), first)  # a branch of zeros leaves the shortcut
    with pytest.raises(ValueError, match="depth is 4"):
        Sprint(10, depth=4)


def test_every_activation_of_sprint_is_the_one_that_is_asked_for():
    names = {type(layer).__name__ for layer in Sprint(10, act="silu").modules()}
    assert "SiLU" in names and "GELU" not in names and "GELU" in {type(m).__name__ for m in Sprint(10).modules()}


def test_sprint_convolutions_start_as_the_identity():
    group = Sprint(10, widths=(32, 48, 48)).groups[0]
    x = torch.randn(2, 24, 8, 8)
    torch.testing.assert_close(group.conv1(x)[:, :24], x)


def test_a_frozen_group_asks_for_no_gradient():
    recipe = RECIPES["sprint"]("cpu")
    model = build_model(recipe, 10, CPU)
    optimizers = build_optimizers(recipe, model)
    optimizers.set_progress(0.2)
    assert model.whiten.bias.requires_grad
    optimizers.set_progress(0.6)
    assert not model.whiten.bias.requires_grad
    assert model.head.weight.requires_grad


def test_first_groups_are_frozen_one_after_the_other():
    recipe = override(RECIPES["sprint-jpeg"]("cpu"), "optimizer.first_schedules.0.until=0.5")
    model = build_model(recipe, 10, CPU)
    optimizers = build_optimizers(recipe, model)
    grouped = [p for o in optimizers.optimizers for group in o.param_groups for p in group["params"]]
    assert len(grouped) == len({id(p) for p in grouped}) == sum(p.requires_grad for p in model.parameters())
    for progress, trained in ((0.0, 3), (0.49, 3), (0.5, 2), (0.89, 2), (0.9, 1), (0.999, 1)):
        optimizers.set_progress(progress)
        of_groups = [{p.requires_grad for p in group.parameters() if p.ndim == 4} for group in model.groups]
        assert of_groups == [{place >= 3 - trained} for place in range(3)], progress
        assert model.head.weight.requires_grad


def test_rates_of_groups_follow_their_own_schedules():
    recipe = RECIPES["sprint-jpeg"]("cpu")
    optimizers = build_optimizers(recipe, build_model(recipe, 10, CPU))
    optimizers.set_progress(0.3)
    muon, sgd = optimizers.optimizers
    rule = recipe.optimizer
    halves = [0.6, 1 - 0.3 / 0.9, 0.7]
    assert [group["lr"] for group in muon.param_groups] == pytest.approx([rule.filter_lr * half for half in halves])
    biases = [0.0, *(rule.bias_lr * half for half in halves), 0.7 * rule.head_lr]
    assert [group["lr"] for group in sgd.param_groups] == pytest.approx(biases)


def test_more_schedules_than_groups_are_refused():
    recipe = RECIPES["sprint"]("cpu")
    recipe = replace(recipe, optimizer=replace(recipe.optimizer, first_schedules=(LinearDecay(),) * 4))
    with pytest.raises(ValueError, match="has 4 schedules; sprint has 3 groups"):
        build_optimizers(recipe, build_model(recipe, 10, CPU))
