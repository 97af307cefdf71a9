"""CycleGAN training: every lever held to the published loop, pools, exact continuation, and what it learns."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from wallclock.bench.measure.numerics import numerics
from wallclock.bench.tasks.cyclegan import trainer as cyclegan_training
from wallclock.bench.tasks.cyclegan.baseline import ImagePool, plain_loop
from wallclock.bench.tasks.cyclegan.networks import pool_draws
from wallclock.bench.tasks.cyclegan.trainer import CycleGanTrainer, Pool
from wallclock.loaders.data.unpaired import load_unpaired
from wallclock.loaders.pipelines.shuffled import unit_range
from wallclock.models.recipes import find_recipe
from wallclock.models.recipes.cyclegan import CYCLEGAN_RECIPES, CycleGanImplementations, CycleGanRecipe
from wallclock.models.recipes.override import override

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data():
    return load_unpaired("synthetic", 36, 32)


def tiny(name="paper", **changes):
    """A recipe of the plain loop, so small that twenty iterations take a second."""
    recipe = find_recipe(CYCLEGAN_RECIPES, name, "cpu")
    recipe = recipe.without(*recipe.levers())
    return replace(recipe, image_size=32, load_size=36, blocks=1, channels=4, **changes)


def switched(recipe, **switches):
    return replace(recipe, implementations=replace(recipe.implementations, **switches))


def losses(steps, count):
    return torch.stack([next(steps).losses for _ in range(count)])


def plainly(recipe, data, count=20, device=CPU):
    with numerics(seed=0):
        return losses(plain_loop(recipe, data, device=device, seed=0), count)


def trained(recipe, data, count=20, device=CPU):
    with numerics(seed=0):
        return losses(CycleGanTrainer(recipe, data, device=device, seed=0).train(), count)


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize(
    "lever", [{}, *({name: True} for name in ("channels_last", "keep_heap", "concatenated", "fused_adam"))]
)
@pytest.mark.parametrize("name", ["paper", pytest.param("lesson", marks=pytest.mark.slow)])
def test_exact_levers_give_the_plain_loops_losses(name, lever, batch_size, data):
    """At a rate of 1e-6: rounding grows by a factor of two an iteration at 2e-4, where 2e-7 becomes 0.1 in twenty."""
    recipe = tiny(name, batch_size=batch_size, pool_size=4, lr=1e-6)
    expected, got = plainly(recipe, data), trained(switched(recipe, **lever), data)
    assert (got[:, 2] == 0).all() == (name == "lesson")
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-7)


def test_bfloat16_is_told_to_change_the_numbers_and_stays_close(data):
    recipe = replace(tiny(lr=1e-6), precision="bf16")
    assert "bfloat16" in recipe.changes()[0] and switched(tiny(), concatenated=True).changes() == ()
    got = trained(recipe, data, 5)
    assert not torch.equal(got, plainly(tiny(lr=1e-6), data, 5))
    torch.testing.assert_close(got, plainly(tiny(lr=1e-6), data, 5), rtol=0.1, atol=0.02)


def test_graphs_give_the_losses_of_the_steps_that_they_hold(data, monkeypatch, recorded_graphs):
    monkeypatch.setattr(cyclegan_training, "check_runnable", lambda *arguments: None)
    recipe = switched(tiny(pool_size=3, lr=1e-6), fused_adam=True)
    got, expected = trained(switched(recipe, cuda_graph=True), data), trained(recipe, data)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU; torch finds none")
def test_cuda_graphs_give_the_losses_of_the_steps_that_they_hold(data, device):
    recipe = tiny(lr=1e-6, pool_size=3)
    with_graph = trained(switched(recipe, cuda_graph=True, channels_last=True), data, device=device)
    torch.testing.assert_close(with_graph, plainly(recipe, data, device=device), rtol=1e-3, atol=1e-5)


def test_pools_fill_first_then_swap_half_and_the_tensor_does_what_the_list_does():
    recipe = replace(tiny(), pool_size=5, batch_size=3)
    plain, pool, swaps = ImagePool(), Pool(5, torch.empty(1, 3, 2, 2)), []
    for iteration in range(40):
        fakes = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 3, 2, 2) + 3 * iteration
        draws = pool_draws(recipe, 0, iteration, 0)
        slots, fills, swapped = (torch.tensor([getattr(d, part) for d in draws]) for part in ("slot", "fills", "swaps"))
        shown = pool.query(fakes, slots, fills, swapped)
        assert torch.equal(shown, plain.query(fakes, draws))
        if iteration == 0:
            assert torch.equal(shown, fakes) and fills.all()
        swaps += swapped.tolist() if iteration > 1 else []
        assert not ((shown != fakes).flatten(1).any(1) & ~swapped).any()
    assert 0.3 < np.mean(swaps) < 0.7
    assert all(not d.swaps and not d.fills for d in pool_draws(replace(recipe, pool_size=0), 0, 3, 1))


def test_the_rate_is_constant_then_falls_to_near_zero():
    recipe = find_recipe(CYCLEGAN_RECIPES, "lesson", "cpu")
    assert [recipe.lr_factor(epoch) for epoch in (0, 99)] == [1.0, 1.0]
    assert recipe.lr_factor(100) == pytest.approx(100 / 101) and recipe.lr_factor(199) == pytest.approx(1 / 101)
    assert (
        recipe.epochs == 200
        and recipe.identity_weight == 0
        and find_recipe(CYCLEGAN_RECIPES, "paper", "cpu").identity_weight
    )


@pytest.mark.parametrize("switches", [{}, {"fused_adam": True, "channels_last": True, "concatenated": True}])
def test_a_training_that_stops_and_goes_on_gives_the_same_losses(switches, data, tmp_path):
    recipe = switched(tiny(pool_size=3), **switches)
    whole = trained(recipe, data, 12)
    with numerics(seed=0):
        trainer = CycleGanTrainer(recipe, data, device=CPU, seed=0)
        first = losses(trainer.train(), 5)
        trainer.save(tmp_path / "checkpoint.safetensors")
    with numerics(seed=1):
        other = CycleGanTrainer(recipe, data, device=CPU, seed=0)
        other.load(tmp_path / "checkpoint.safetensors")
        rest = losses(other.train(), 7)
    assert torch.equal(torch.cat([first, rest]), whole)


def test_epochs_end_and_the_rate_follows(data):
    small = replace(data, train=(data.train[0][:2], data.train[1][:3]))
    trainer = CycleGanTrainer(tiny(epochs_constant=1, epochs_decay=1), small, device=CPU, seed=0)
    rates = [(trainer.generator_optimizer.param_groups[0]["lr"], trainer.position.epoch) for _ in trainer.train()]
    assert [rate for rate, _ in rates] == pytest.approx([2e-4] * 3 + [1e-4] * 3)
    assert trainer.finished and trainer.position.iteration == 6


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("image_size=30", "a multiple of 4 from 24 up"),
        ("load_size=200", "images cannot be cropped to more than they are"),
        ("batch_size=0", "at least 1"),
        ("implementations.residual=triton", "a CycleGAN has no such operation"),
        ("implementations.cuda_graph=true", "CUDA graphs need a GPU"),
        ("implementations.instance_norm_act=triton", "implementations.instance_norm_act=eager"),
        ("batch_size=500", "--set batch_size=400 or more data"),
    ],
)
def test_what_cannot_be_is_refused_with_the_next_step(change, says, data, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=says):
        CycleGanTrainer(override(find_recipe(CYCLEGAN_RECIPES, "paper", "cpu"), change), data, device=CPU, seed=0)


def test_a_recipe_survives_its_record():
    recipe = find_recipe(CYCLEGAN_RECIPES, "lesson", "cuda")
    again = CycleGanRecipe.from_resolved(recipe.resolved())
    assert (
        again == recipe and again.hash() == recipe.hash() and isinstance(again.implementations, CycleGanImplementations)
    )
    assert recipe.variant == "channels_last+cuda_graph+triton instance_norm_act+concatenated+fused_adam"


def told_apart(data):
    """A classifier of the two domains, trained on their training images."""
    images = unit_range(torch.cat(data.train)[:, 2:-2, 2:-2])
    labels = torch.arange(2).repeat_interleave(len(data.train[0]))
    layers, channels = [], 3
    for width in (16, 32, 32):
        layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.ReLU()]
        channels = width
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 2))
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(150):
        chosen = torch.randint(len(images), (64,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images[chosen]), labels[chosen]).backward()
        optimizer.step()
    return net.eval()


def test_translations_are_of_the_other_domain_after_a_short_training(data):
    with numerics(seed=0):
        classifier = told_apart(data)

        @torch.no_grad()
        def share(images_NHWC, domain):
            return (classifier(unit_range(images_NHWC)).argmax(1) == domain).float().mean().item()

        assert min(share(images, domain) for domain, images in enumerate(data.test)) > 0.95
        recipe = replace(tiny("lesson", lr=5e-4, batch_size=4), blocks=2, channels=16)
        trainer = CycleGanTrainer(switched(recipe, concatenated=True, fused_adam=True), data, device=CPU, seed=0)

        def translated():
            pairs = (("g_a", data.test[0], 1), ("g_b", data.test[1], 0))
            return [share(trainer.translated(name, images[:30]), domain) for name, images, domain in pairs]

        assert min(translated()) < 0.5
        losses(trainer.train(), 80)
        assert min(translated()) >= 0.8
