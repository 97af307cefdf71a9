"""WGAN training: faithful to the published loops, and every exact lever held to the plain loop step by step."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from wallclock.bench.measure.numerics import numerics
from wallclock.bench.tasks.wgan import trainer as wgan_training
from wallclock.bench.tasks.wgan.baseline import plain_loop
from wallclock.bench.tasks.wgan.trainer import WganTrainer, check_runnable
from wallclock.loaders.batches import DataError, Split
from wallclock.loaders.data.synthetic import synthetic_split
from wallclock.models.recipes import find_recipe
from wallclock.models.recipes.override import override
from wallclock.models.recipes.wgan import (
    WGAN_RECIPES,
    Adam,
    CriticSteps,
    RMSprop,
    Stage,
    WganImplementations,
    WganRecipe,
)

CPU = torch.device("cpu")
SMALL = {
    "image_size": 32,
    "generator_channels": 4,
    "critic_channels": 4,
    "batch_size": 8,
    "generator_batch_size": 6,
    "critic_steps": CriticSteps(usual=2, long=5, long_until=1, long_every=4),
    "stages": (Stage(epochs=1, lr=1e-3), Stage(epochs=1.3, lr=1e-4, long_start=False)),
}


@pytest.fixture(scope="module")
def images():
    return synthetic_split(train=84, test=20)  # ten batches of 8, and four images over


def tiny(name="lesson", **changes):
    """A recipe without levers, at the size of a test."""
    recipe = replace(find_recipe(WGAN_RECIPES, name, "cpu"), **SMALL)
    return replace(recipe.without(*recipe.levers()), **changes)


def switched(recipe, **switches):
    return replace(recipe, implementations=replace(recipe.implementations, **switches))


def losses(steps):
    return [(step.kind, step.losses.item()) for step in steps]


def plainly(recipe, images, seed=0):
    with numerics(seed=seed):
        return losses(plain_loop(recipe, images, device=CPU, seed=seed))


def trained(recipe, images, seed=0, device=CPU):
    with numerics(seed=seed):
        return losses(WganTrainer(recipe, images, device=device, seed=seed).train())


@pytest.fixture(autouse=True)
def one_thread():
    """So small are these maps that two threads mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def float64():
    """Rounding is amplified: RMSprop divides a gradient by its own size, and so moves what has none but rounding."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


LEVERS = [{}, *({name: True} for name in ("channels_last", "early_backward", "products", "generator_graph"))]
LEVERS += [{"resident": False}, {"channels_last": True, "early_backward": True, "products": True, "keep_heap": True}]


@pytest.mark.parametrize("levers", LEVERS, ids=lambda levers: "+".join(levers) or "none")
@pytest.mark.parametrize("name", WGAN_RECIPES)
def test_exact_levers_give_the_plain_loops_losses_step_by_step(name, levers, images, float64):
    # The lesson's first filters start at up to 0.14: clamped to 0.01, whole filters are +-0.01, their products with
    # black and white pixels cancel exactly, and the order of a sum decides on which side of the kink they fall.
    recipe = tiny(name, clamp=0.1 if name == "lesson" else tiny(name).clamp)
    expected, got = plainly(recipe, images), trained(switched(recipe, **levers), images)
    assert [kind for kind, _ in got] == [kind for kind, _ in expected]
    assert len(got) == 23 + sum(kind == "generator" for kind, _ in got)
    assert [loss for _, loss in got] == pytest.approx([loss for _, loss in expected], rel=1e-7, abs=1e-12)
    assert len({loss for _, loss in got}) == len(got)  # it moves


def test_in_float32_the_levers_that_reorder_nothing_give_the_same_digits(images):
    expected = plainly(tiny(), images)
    for levers in ({}, {"early_backward": True}, {"generator_graph": True}, {"resident": False}, {"keep_heap": True}):
        assert trained(switched(tiny(), **levers), images) == expected


def test_the_lever_for_bfloat16_says_that_it_changes_the_mathematics(images):
    recipe = replace(tiny("paper"), precision="bf16")
    assert recipe.levers() == ("precision",) and "bfloat16" in recipe.changes()[0]
    assert switched(tiny("paper"), products=True, channels_last=True).changes() == ()
    with numerics(seed=0):
        trainer = WganTrainer(recipe, images, device=CPU, seed=0)
        got = losses(trainer.train())
    expected = plainly(tiny("paper"), images)
    assert got != expected
    assert got[0][1] == pytest.approx(expected[0][1], rel=0.1)
    assert {p.dtype for net in (trainer.critic, trainer.generator) for p in net.parameters()} == {torch.float32}
    assert {s["square_avg"].dtype for s in trainer.critic_optimizer.state.values()} == {torch.float32}


class Watched:
    """Records what a critic is shown, and the largest of its weights at each time."""

    def __init__(self, monkeypatch):
        from wallclock.models.networks.dcgan import Critic

        self.batches, self.largest, self.training = [], [], []
        forward = Critic.forward

        def watched(critic, x):
            self.batches.append(len(x))
            self.largest.append({n: p.abs().max().item() for n, p in critic.named_parameters()})
            self.training.append(critic.training and any(p.requires_grad for p in critic.parameters()))
            return forward(critic, x)

        monkeypatch.setattr(Critic, "forward", watched)


@pytest.mark.parametrize("loop", [plainly, trained])
@pytest.mark.parametrize("name", ["lesson", "paper"])
def test_every_weight_is_clamped_before_each_critic_step_and_no_other(loop, name, images, monkeypatch):
    watched = Watched(monkeypatch)
    kinds = [kind for kind, _ in loop(tiny(name), images)]
    calls = iter(zip(watched.batches, watched.largest, watched.training, strict=True))
    beyond = 0
    for kind in kinds:
        if kind == "critic":  # the real images and the fakes, each in a pass of its own
            for _ in range(2):
                size, largest, learning = next(calls)
                assert size == 8 and learning
                assert max(largest.values()) <= 0.01 + 1e-9  # gammas too, which start at one
        else:
            size, largest, learning = next(calls)
            assert size == 6 and not learning
            beyond += max(largest.values()) > 0.01 + 1e-9
    assert next(calls, None) is None
    assert beyond == kinds.count("generator")  # the last update is not clamped when the generator meets it


def test_the_clamp_reaches_batch_norms_gammas(images):
    with numerics(seed=0):
        trainer = WganTrainer(tiny("paper"), images, device=CPU, seed=0)
        next(trainer.train())
    norms = [m for m in trainer.critic.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all(m.weight.abs().max() <= 0.01 for m in norms)


def test_critic_steps_are_100_or_5():
    steps, first, later = CriticSteps(), Stage(epochs=1, lr=1e-4), Stage(epochs=1, lr=1e-5, long_start=False)
    assert [steps.before(n, first) for n in (0, 24, 25, 499, 500, 501, 1000)] == [100, 100, 5, 5, 100, 5, 100]
    assert [steps.before(n, later) for n in (0, 1, 24, 500)] == [100, 5, 5, 100]
    assert {find_recipe(WGAN_RECIPES, name, "cpu").critic_steps for name in ("lesson", "paper")} == {steps}


def test_an_epochs_end_cuts_the_critic_steps_short(images):
    counts, count = [], 0
    for kind, _ in trained(tiny(), images):
        count = count + 1 if kind == "critic" else 0
        counts.append(count)
    runs = [before for before, now in zip(counts, [*counts[1:], 0], strict=True) if now == 0 and before]
    # First stage: 5, then 2 by 2, the fifth of them one image batch short; second: 5 again at its start.
    assert runs == [5, 2, 2, 1, 5, 2, 2, 1, 3]


def test_recipes_pin_what_is_published():
    lesson, paper, gp = (find_recipe(WGAN_RECIPES, name, "cpu") for name in WGAN_RECIPES)
    assert (lesson.batch_size, lesson.generator_batch_size) == (128, 64)
    assert (lesson.n_extra_layers, lesson.order) == (1, "lesson")
    assert [(s.lr, s.epochs, s.long_start) for s in lesson.stages] == [(1e-4, 1, True), (1e-5, 1, False)]
    assert (paper.batch_size, paper.order, paper.stages[0].lr, paper.clamp) == (64, "paper", 5e-5, 0.01)
    for recipe in (lesson, paper):
        assert recipe.optimizer == RMSprop(alpha=0.99, eps=1e-8)
        assert recipe.image_size == 64
    assert gp.optimizer == Adam(beta1=0.0, beta2=0.9) and gp.stages[0].lr == 1e-4
    assert (gp.gradient_penalty, gp.clamp, gp.critic_norm) == (10, 0, "layer")
    assert [gp.critic_steps.before(n, gp.stages[0]) for n in (0, 24, 500)] == [5, 5, 5]


@pytest.mark.parametrize("name", WGAN_RECIPES)
def test_critic_steps_move_the_generators_buffers_and_nothing_else_of_it(name, images):
    with numerics(seed=0):
        trainer = WganTrainer(tiny(name), images, device=CPU, seed=0)
    weights = [p.clone() for p in trainer.generator.parameters()]
    buffers = {n: b.clone() for n, b in trainer.generator.named_buffers()}
    steps = trainer.train()
    for _ in range(2):
        assert next(steps).kind == "critic"
    assert all(torch.equal(p, before) for p, before in zip(trainer.generator.parameters(), weights, strict=True))
    for n, buffer in trainer.generator.named_buffers():
        assert not torch.equal(buffer, buffers[n])
        if n.endswith("num_batches_tracked"):
            assert buffer == 2


def test_the_critic_lowers_real_minus_fake_and_the_generator_lowers_fake(images):
    recipe = tiny("paper")
    with numerics(seed=0):
        trainer = WganTrainer(recipe, images, device=CPU, seed=0)
        real, noise = trainer.batches.images(0, 0), trainer.drawn_noise(8)
        trainer.critic_optimizer.clamp_()
        with torch.no_grad():
            expected = trainer.critic(real).mean() - trainer.critic(trainer.generator(noise)).mean()
        first = trainer.update_critic(real, noise, None, clamp=True)
        assert first.item() == pytest.approx(expected.item(), rel=1e-5)
        for _ in range(20):
            last = trainer.update_critic(real, noise, None, clamp=True)
        assert last < first
        with torch.no_grad():
            assert trainer.critic(real).mean() < trainer.critic(trainer.generator(noise)).mean()
        begun = trainer.update_generator(noise)
        for _ in range(20):
            ended = trainer.update_generator(noise)
    assert ended < begun


def test_the_penalty_is_the_papers(images):
    recipe = tiny("gp", gradient_penalty=10.0)
    with numerics(seed=0):
        trainer = WganTrainer(recipe, images, device=CPU, seed=0)
    real, noise, mix = trainer.batches.images(0, 0), trainer.drawn_noise(8), torch.rand(8, 1, 1, 1)
    with torch.no_grad():
        fake = trainer.generator(noise)
    between = (mix * real + (1 - mix) * fake).requires_grad_()
    slopes = [torch.autograd.grad(trainer.critic(between)[i], between)[0][i].norm().item() for i in range(8)]
    penalty = trainer._penalty(mix * real + (1 - mix) * fake)
    assert penalty.item() == pytest.approx(sum((slope - 1) ** 2 for slope in slopes) / 8, rel=1e-4)
    assert not [m for m in trainer.critic.modules() if isinstance(m, nn.BatchNorm2d)]
    (group,) = trainer.critic_optimizer.param_groups
    assert group["betas"] == (0.0, 0.9)
    # Its gradient is in the step: without the penalty another one is taken.
    stepped = []
    for weight in (10.0, 0.0):
        with numerics(seed=0):
            other = WganTrainer(replace(recipe, gradient_penalty=weight), images, device=CPU, seed=0)
        other.update_critic(real, noise, mix if weight else None, clamp=False)
        stepped.append(torch.cat([p.grad.flatten() for p in other.critic.parameters()]))
    assert (stepped[0] - stepped[1]).norm() > 0.5 * stepped[1].norm()


def test_triton_kernels_follow_the_plain_loop(images, device, large_tiles):
    recipe = tiny("paper", batch_size=4, generator_batch_size=4, image_size=32)
    recipe = replace(recipe, stages=(Stage(epochs=0.1, lr=1e-3, long_start=False),))
    triton = {"batch_norm_act": "triton", "optimizer": "triton", "channels_last": True}
    few = Split(images.train.subset(slice(0, 40)), images.test)
    expected, got = trained(recipe, few, device=device), trained(switched(recipe, **triton), few, device=device)
    assert len(got) == len(expected) >= 2
    assert [loss for _, loss in got] == pytest.approx([loss for _, loss in expected], rel=0.02)


def test_what_cannot_run_is_refused_with_the_next_step(images, monkeypatch):
    def refuses(recipe, words, split=images):
        with pytest.raises(ValueError, match=words):
            check_runnable(recipe, split, CPU)

    refuses(switched(tiny(), cuda_graph=True), "need a GPU; use --set implementations.cuda_graph=false")
    refuses(tiny(image_size=64), "the images have 32 pixels; expected image_size=64")
    refuses(tiny(upsampling="neares"), "did you mean 'nearest'")
    with pytest.raises(DataError, match="84 training images do not fill one batch of 100; use --set batch_size=84"):
        check_runnable(tiny(batch_size=100), images, CPU)
    if not torch.cuda.is_available():
        monkeypatch.delenv("TRITON_INTERPRET")
        refuses(switched(tiny(), optimizer="triton"), "or use --set implementations.optimizer=eager")


@pytest.mark.parametrize(
    ("name", "assignment", "says"),
    [
        ("gp", "critic_norm=batch", "use --set critic_norm=layer"),
        ("gp", "clamp=0.01", "use --set clamp=0 with Adam"),
        ("gp", "implementations.compile=true", "cannot differentiate the gradient penalty twice"),
        ("lesson", "implementations.residual=triton", "a WGAN has no such operation"),
        ("lesson", "implementations.batch_norm_save=output", "use input or byte"),
        ("lesson", "batch_size=0", "at least one image"),
        ("lesson", "critic_steps.usual=0", "at least one step"),
        ("lesson", "optimizer.alpha=1", "below 1"),
        ("lesson", "precision=fp16", "expected one of bf16, fp32"),
        ("lesson", "stages=[]", "at least one stage"),
        ("lesson", "implementations.produkts=true", "did you mean 'products'"),
    ],
)
def test_recipes_that_cannot_be_are_refused(name, assignment, says):
    with pytest.raises(ValueError, match=says):
        override(find_recipe(WGAN_RECIPES, name, "cpu"), assignment)


@pytest.mark.parametrize("name", WGAN_RECIPES)
@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_recipes_are_rebuilt_from_their_records(name, device_type):
    recipe = override(find_recipe(WGAN_RECIPES, name, device_type), "n_extra_layers=2")
    again = WganRecipe.from_resolved(recipe.resolved())
    assert again == recipe and again.hash() == recipe.hash()
    assert find_recipe(WGAN_RECIPES, name, device_type).hash() != recipe.hash()


def test_levers_are_told_and_taken_back():
    recipe = find_recipe(WGAN_RECIPES, "lesson", "cpu")
    assert set(recipe.levers()) == {
        f"implementations.{name}" for name in ("channels_last", "keep_heap", "early_backward", "products")
    }
    assert recipe.without(*recipe.levers()).variant == "plain"
    assert "channels_last" not in recipe.without("implementations.channels_last").variant
    assert replace(recipe, precision="bf16").variant.endswith("bf16")
    assert WganImplementations(generator_graph=True, resident=False, optimizer="triton").triton == ("optimizer",)
    with pytest.raises(ValueError, match="did you mean 'implementations.products'"):
        recipe.without("implementations.product")


def test_noise_is_the_runs_own(images):
    """What else draws from torch's generators does not move it, and looks do not either."""
    quiet = trained(tiny("paper"), images)
    with numerics(seed=0):
        trainer = WganTrainer(tiny("paper"), images, device=CPU, seed=0)
        disturbed = []
        for step in trainer.train():
            disturbed.append((step.kind, step.losses.item()))
            torch.randn(3)
            if step.kind == "generator":
                nets = (trainer.generator, trainer.critic)
                before = [buffer.clone() for net in nets for buffer in net.buffers()]
                trainer.distance(images.test)
                trainer.samples(4)
                after = [buffer for net in nets for buffer in net.buffers()]
                assert all(map(torch.equal, before, after))
    assert disturbed == quiet
    assert trained(tiny("paper"), images, seed=1) != quiet


def test_the_distance_of_a_critic_that_tells_them_apart_is_positive(images):
    with numerics(seed=0):
        trainer = WganTrainer(tiny("paper"), images, device=CPU, seed=0)
        real = trainer.batches.images(0, 0)
        trainer.critic_optimizer.clamp_()
        for _ in range(30):
            loss = trainer.update_critic(real, trainer.drawn_noise(8), None, clamp=True)
    assert loss < 0
    # - the loss, up to other images and noise.
    assert trainer.distance(images.train) == pytest.approx(-loss.item(), rel=0.5)


def test_samples_are_pixels_and_the_same_in_every_look(images):
    with numerics(seed=0):
        trainer = WganTrainer(tiny(), images, device=CPU, seed=0)
    first = trainer.samples(5)
    assert first.dtype == torch.uint8 and first.shape == (5, 32, 32, 3)
    assert torch.equal(trainer.samples(5), first)
    # By running statistics, no neighbour counts: what is left is rounding, of 127.5 to either side.
    assert (trainer.samples(2).int() - first[:2].int()).abs().max() <= 1
    assert trainer.generator.training


class Waits(TorchDispatchMode):
    """Notes the operations that make the host wait for a device."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(word in str(function) for word in ("_local_scalar_dense", "nonzero", "equal", "masked_select")):
            self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", WGAN_RECIPES)
def test_no_step_waits_for_the_device(name, images):
    with numerics(seed=0):
        trainer = WganTrainer(tiny(name), images, device=CPU, seed=0)
        steps = trainer.train()
        next(steps)  # Adam's first step makes its state
        with Waits() as waits:
            kinds = {next(steps).kind for _ in range(6)}
    assert kinds == {"critic", "generator"}
    # Adam without a graph counts its steps on the host.
    assert [wait for wait in waits.seen if name != "gp"] == []


@pytest.mark.parametrize("name", ["lesson", "paper"])
def test_warming_up_a_capture_leaves_no_trace(name, images, float64, monkeypatch, recorded_graphs):
    """Weights, batch norms' buffers, optimisers and noise are put back: losses go on as without graphs."""
    monkeypatch.setattr(wgan_training, "check_runnable", lambda *arguments: None)
    recipe = tiny(name, clamp=0.1)
    expected, got = plainly(recipe, images), trained(switched(recipe, cuda_graph=True), images)
    assert [kind for kind, _ in got] == [kind for kind, _ in expected]
    assert [loss for _, loss in got] == pytest.approx([loss for _, loss in expected], rel=1e-7, abs=1e-12)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("name", WGAN_RECIPES)
def test_cuda_graphs_give_the_losses_of_the_steps_that_they_hold(name, images, float64, device):
    """In float64: RMSprop divides a gradient that is rounding alone by its own size, and two float32 runs soon part."""
    recipe = replace(tiny(name), implementations=replace(tiny(name).implementations, channels_last=True))
    expected, got = (
        trained(recipe, images, device=device),
        trained(switched(recipe, cuda_graph=True), images, device=device),
    )
    assert [loss for _, loss in got] == pytest.approx([loss for _, loss in expected], rel=1e-5, abs=1e-9)
