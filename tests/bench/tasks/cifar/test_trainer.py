"""The trainer of a recipe: schedule, sizes, pruned epochs, predictions, graphs; its records are test_cifar.py's."""

import shutil
from dataclasses import replace

import pytest
import torch
from tiny import tiny_recipe

from wallclock.bench.engine.ranks import Ranks
from wallclock.bench.measure.numerics import numerics
from wallclock.bench.measure.timing import PhaseTimer, RunClocks
from wallclock.bench.tasks.cifar.trainer import Evaluated, Finished, StepDone, Trainer, check_runnable
from wallclock.loaders.batches import DataError
from wallclock.models.recipes.recipe import Implementations, Pruning, Resolution, TestTimeAugmentation
from wallclock.models.recipes.schedules import LinearDecay

CPU = torch.device("cpu")


@pytest.mark.slow
def test_it_learns(small_split):
    with numerics(seed=0):
        trainer = Trainer(tiny_recipe(epochs=8), small_split, device=CPU, seed=0, clocks=RunClocks(CPU))
        events = list(trainer.train())
    losses = [e.train_loss_nats for e in events if isinstance(e, Evaluated)]
    assert losses[-1] < 0.8 * losses[0]
    assert events[-1].accuracy > 0.35
    assert sum(isinstance(e, StepDone) for e in events) == 80


def test_a_single_epoch_is_looked_at_four_times(small_split):
    with numerics(seed=0):
        trainer = Trainer(tiny_recipe(epochs=1), small_split, device=CPU, seed=0, clocks=RunClocks(CPU))
        looks = [e.step for e in trainer.train() if isinstance(e, Evaluated)]
    assert looks == [3, 6, 9, 10]


@pytest.mark.parametrize("padding", ["zero", "none"])
def test_padding_is_one_ablation_away(padding, small_split):
    augmentations = []
    for each in ("reflect", padding):
        trainer = Trainer(tiny_recipe(padding=each), small_split, device=CPU, seed=0, clocks=RunClocks(CPU))
        augmentations.append(trainer.batches().augmentation)
    reflect, other = augmentations
    assert (reflect.pad, reflect.padding) == (2, "reflect")
    assert (other.pad, other.padding) == {"zero": (2, "zero"), "none": (0, "reflect")}[padding]


def test_small_images_come_first(small_split, monkeypatch):
    recipe = tiny_recipe(resolutions=(Resolution(size=20, until_epoch=1),))
    with numerics(seed=0):
        trainer = Trainer(recipe, small_split, device=CPU, seed=0, clocks=RunClocks(CPU))
        sizes = []
        trainer.model.register_forward_pre_hook(
            lambda module, inputs: sizes.append(inputs[0].shape[-1]) if module.training else None
        )
        list(trainer.train())
    assert sizes == [20] * 10 + [32] * 10


def test_a_prediction_depends_on_its_own_image_alone(small_split):
    recipe = tiny_recipe(precision="fp32")
    with numerics(seed=0):
        trainer = Trainer(recipe, small_split, device=CPU, seed=0, clocks=RunClocks(CPU))
        list(trainer.train())
        trainer.model.eval()
        images, _ = next(iter(trainer.test_batches()))
        tta = TestTimeAugmentation(threshold=0.5)
        with torch.no_grad():
            together = trainer.predict(images[:64], tta)
            alone = torch.cat([trainer.predict(image[None], tta) for image in images[:64]])
            plain = trainer.predict(images[:64], None)
            untouched = trainer.predict(images[:64], TestTimeAugmentation(threshold=0.0))
    assert torch.equal(together, alone)
    assert torch.equal(plain, untouched)


def test_six_views_are_the_weighted_mean_of_their_logits(small_split):
    with numerics(seed=0):
        trainer = Trainer(tiny_recipe(precision="fp32"), small_split, device=CPU, seed=0, clocks=RunClocks(CPU))
        trainer.model.eval()
        images, _ = next(iter(trainer.test_batches()))
        images = images[:8]
        with torch.no_grad():
            plain = trainer.forward(images)
            result = trainer._six_views(images, plain)
            padded = torch.nn.functional.pad(images, (1, 1, 1, 1), "reflect")
            views = [images, padded[:, :, :32, :32], padded[:, :, 2:, 2:]]
            logits = [trainer.forward(v) + trainer.forward(v.flip(3)) for v in views]
    torch.testing.assert_close(result, 0.25 * logits[0] + 0.125 * (logits[1] + logits[2]))


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (tiny_recipe(model="sprnt"), "did you mean 'sprint'"),
        (tiny_recipe(model="wrn_22", model_arguments={}), "use SGD"),
        (tiny_recipe(model_arguments={"width": 1}), "does not take"),
        (tiny_recipe(model_arguments={"widths": (8,) * 6}), "cannot compute images of 32 pixels"),
        (tiny_recipe(precision="fp16"), "bf16 or a GPU"),
        (tiny_recipe(implementations=Implementations(cuda_graph=True)), "need a GPU"),
        (tiny_recipe(batch_size=2000), "do not fill one batch"),
    ],
)
def test_what_cannot_run_here_is_refused_with_the_next_step(recipe, message, small_split):
    with pytest.raises(ValueError, match=message):
        Trainer(recipe, small_split, device=CPU, seed=0, clocks=RunClocks(CPU))


def test_images_too_small_for_a_resolution_are_refused(small_split):
    recipe = tiny_recipe(resolutions=(Resolution(size=64, until_epoch=1),))
    with numerics(seed=0), pytest.raises(DataError, match="64-pixel"):
        list(Trainer(recipe, small_split, device=CPU, seed=0, clocks=RunClocks(CPU)).train())


def test_pruned_epochs_are_shorter_and_the_schedule_knows(small_split):
    """Of 1,000 samples 250 are left out: seven steps of 100 instead of ten, in all epochs but the first and last."""
    recipe = tiny_recipe(epochs=4, pruning=Pruning())
    with numerics(seed=0):
        trainer = Trainer(recipe, small_split, device=CPU, seed=0, clocks=RunClocks(CPU))
        assert [epoch.steps for epoch in trainer.epochs] == [10, 7, 7, 10]
        events = list(trainer.train())
    looks = [event for event in events if isinstance(event, Evaluated)]
    assert [look.epoch for look in looks] == [1, 2, 3, 4] and [look.step for look in looks] == [10, 17, 24, 34]
    (last,) = (event for event in events if isinstance(event, Finished))
    assert last.accuracy > 0.15 and looks[-1].train_loss_nats < looks[0].train_loss_nats
    assert trainer._easy.losses.isfinite().all()
    cut = tiny_recipe(epochs=2.5, pruning=Pruning(whole_epochs=0))
    with numerics(seed=0):
        trainer = Trainer(cut, small_split, device=CPU, seed=0, clocks=RunClocks(CPU))
    assert [epoch.steps for epoch in trainer.epochs] == [10, 7, 4]


def test_pruning_needs_to_know_the_samples(small_split):
    with pytest.raises(ValueError, match="pruning=null"):
        check_runnable(tiny_recipe(pruning=Pruning(), pipeline="dataloader"), small_split, CPU)
    with pytest.raises(ValueError, match="under torchrun"):
        ranks = Ranks(rank=0, world=2)
        Trainer(tiny_recipe(pruning=Pruning()), small_split, device=CPU, seed=0, clocks=RunClocks(CPU), ranks=ranks)


def losses_of_steps(split, device, *, cuda_graph, **implementations):
    """Losses of steps of both sizes of image, before and after the whitening bias and the first group freeze."""
    recipe = tiny_recipe(
        precision="fp32",
        epochs=3,
        model_arguments={"widths": (8, 16, 16)},
        resolutions=(Resolution(size=24, until_epoch=2),),
        pruning=Pruning(whole_epochs=0),
        implementations=Implementations(cuda_graph=cuda_graph, **implementations),
    )
    rule = recipe.optimizer  # its rate divided, so that rounding, of rates in float32 too, does not grow
    rule = replace(rule, filter_lr=0.1 * rule.filter_lr, first_schedules=(LinearDecay(until=0.5),))
    recipe = replace(recipe, optimizer=rule)
    with numerics(seed=0):
        trainer = Trainer(recipe, split, device=device, seed=0, clocks=RunClocks(device))
        if cuda_graph and device.type == "cpu":  # as on a GPU: every kind of step is captured before the first is taken
            trainer._warm_up()
        trainer.model.train()
        unmeasured, losses = PhaseTimer(device, enabled=False), []
        for epoch, steps in zip(trainer.epochs[1:], ((0, 1, 9, 12), (13, 14)), strict=True):
            batches = trainer._shown(trainer.batches(epoch.size), epoch)
            for step in steps:
                before = trainer._loss_sum.item()
                trainer.step(batches, step, unmeasured)
                losses.append(trainer._loss_sum.item() - before)
        for frozen in (trainer.model.whiten.bias, *trainer.model.groups[0].parameters()):
            assert frozen.grad is None and not frozen.requires_grad
    return losses


@pytest.mark.parametrize("optimizer", ["eager", "triton"])
def test_whole_steps_as_graphs_train_the_same(optimizer, small_split, monkeypatch, recorded_graphs):
    monkeypatch.setattr("wallclock.bench.tasks.cifar.trainer.check_runnable", lambda *arguments: None)
    sgd = torch.optim.SGD  # on a GPU it is fused, and reads its rate on the device
    monkeypatch.setattr(torch.optim, "SGD", lambda *groups, **fields: sgd(*groups, **(fields | {"fused": True})))
    plain, captured = (
        losses_of_steps(small_split, CPU, cuda_graph=graph, optimizer=optimizer) for graph in (False, True)
    )
    assert captured == pytest.approx(plain, rel=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU; torch finds none")
def test_whole_steps_as_cuda_graphs_train_the_same(small_split, device):
    plain, captured = (losses_of_steps(small_split, device, cuda_graph=graph) for graph in (False, True))
    assert captured == pytest.approx(plain, rel=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on the CPU needs g++")
def test_compiled_equals_eager(small_split):
    accuracies = []
    for compiled in (False, True):
        recipe = tiny_recipe(precision="fp32", epochs=4, implementations=Implementations(compile=compiled))
        with numerics(seed=0):
            events = list(Trainer(recipe, small_split, device=CPU, seed=0, clocks=RunClocks(CPU)).train())
        first = next(e for e in events if isinstance(e, Evaluated))
        accuracies.append((first.train_loss_nats, isinstance(events[-1], Finished)))
    assert accuracies[0][1] and accuracies[1][1]
    assert accuracies[1][0] == pytest.approx(accuracies[0][0], rel=0.02)
