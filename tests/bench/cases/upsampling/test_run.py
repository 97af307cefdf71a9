"""`wallclock run upsampling`: what is wrong is not timed, grids are told, a run goes on where it was."""

from dataclasses import replace

import pytest
import torch

from wallclock import reports
from wallclock.bench.cases.kernels import run as kernels
from wallclock.bench.cases.upsampling import run as upsampling
from wallclock.bench.cases.upsampling import small_gan as upsampling_gan
from wallclock.bench.cases.upsampling.run import UpsamplingRequest, UpsamplingRun, real_images
from wallclock.bench.cases.upsampling.small_gan import SmallGan, doublings
from wallclock.bench.cases.upsampling.trial import UPSAMPLING, UpsamplingTrial
from wallclock.bench.cli.output import print_report
from wallclock.bench.measure.timing import Deadline
from wallclock.kernels.spec import Case
from wallclock.loaders.batches import Dataset, Split
from wallclock.loaders.data.synthetic import synthetic_split
from wallclock.models.upsampling import UPSAMPLINGS
from wallclock.reports.store.layout import StoreError
from wallclock.reports.views.kernels import failed_rows
from wallclock.reports.views.upsampling import checkerboard_rows, stage_rows, upsampling_summary, winner_rows

TINY = Case(network="tiny", shape=(2, 64, 4, 4))
CPU = torch.device("cpu")


@pytest.fixture
def tiny(monkeypatch):
    """One small case in one type, 80 images of 16 pixels, small networks for them, and a small copy."""
    monkeypatch.setattr(kernels, "COPIED_AT_LEAST_BYTES", 1 << 20)
    monkeypatch.setattr(kernels, "cache_bytes", lambda device: 1 << 20)
    monkeypatch.setattr(upsampling, "DTYPES", ("fp32",))
    for name, value in (("BATCH", 16), ("LOOKED_AT", 40), ("BASE_CHANNELS", 4)):
        monkeypatch.setattr(upsampling_gan, name, value)
    spec = replace(UPSAMPLING, cases=(TINY,))
    monkeypatch.setattr(upsampling, "UPSAMPLING", spec)
    images = synthetic_split(train=80, test=10).train.images_NHWC[:, 8:24, 8:24].contiguous()
    data = Dataset.create("small", images, torch.zeros(80, dtype=torch.int64), ("any",))
    monkeypatch.setattr(upsampling, "load_split", lambda name, split: Split(data, data))
    return spec


def asked(**fields):
    return UpsamplingRequest(**{"device": "cpu", "sample_budget_s": 0.01, "steps": 2, "seeds": 1} | fields)


def test_samples_tables_and_pictures_of_a_run(tiny, tmp_path):
    seen = []
    run = UpsamplingRun.new(asked(), tmp_path, "test")
    assert run.execute(seen.append) == "done"
    frame = reports.load(run.writer.path)
    latency = frame[frame["metric"] == "latency"]
    assert set(latency["variant"]) == {*UPSAMPLINGS, *(f"{kind}_nchw" for kind in UPSAMPLINGS)}
    assert set(latency["direction"]) == {"forward", "backward", "both"}
    weights = frame[frame["metric"] == "parameter_count"].groupby("variant")["value"].first() / (64 * 3)
    assert [weights[kind] for kind in UPSAMPLINGS] == [16, 9, 9, 9, 36]
    saved = frame[frame["metric"] == "saved_bytes"].groupby("variant")["value"].max()
    assert saved["nearest"] >= 4 * 4 * 2 * 64 * 16 > saved["collapsed"] - 4 * 16 * 64 * 3
    assert {done.variant for done in seen if done.why_not} == {"triton_collapsed"}

    summary = upsampling_summary(frame)
    assert len(summary) == 5 * 2 and set(summary["kind"]) == set(UPSAMPLINGS)
    for _, stage in summary.groupby("layout"):
        times = stage.set_index("kind")["both_us"]
        fastest = set(stage.loc[stage["fastest"], "kind"])
        assert times.idxmin() in fastest
        interval = stage.set_index("kind")[["both_low_us", "both_high_us"]]
        assert fastest == {
            k for k in times.index if interval["both_low_us"][k] <= interval["both_high_us"][times.idxmin()]
        }
        assert (stage.set_index("kind")["x_nearest"] * times).tolist() == pytest.approx([times["nearest"]] * 5)
        # Deconv, and what a step of training has undone of ICNR, have a grid.
        assert {"nearest", "bilinear", "collapsed"} <= set(stage.loc[stage["clean"], "kind"])
        assert "deconv" not in set(stage.loc[stage["clean"], "kind"])
    assert len(winner_rows(summary)[1]) == 2 and len(stage_rows(summary)[1]) == 10
    rows = checkerboard_rows(frame)[1]
    assert [row[:2] for row in rows] == [["real images", ""], *([k, n] for k in UPSAMPLINGS for n in ("0", "2"))]
    share = {row[0]: float(row[3].rstrip("%")) for row in rows}
    assert share["deconv"] > 3 * share["nearest"]

    pictures = reports.load_pictures(run.writer.path)
    assert [p.caption.split(":")[0] for p in pictures] == [
        f"{kind} {when}" for kind in UPSAMPLINGS for when in ("at the start", "after 2 steps")
    ]
    assert len({p.png for p in pictures}) == 10


def test_the_tables_fit_into_80_columns(tiny, tmp_path, capsys):
    run = UpsamplingRun.new(asked(only=("channels_last speed",)), tmp_path, "test")
    run.execute(lambda done: None)
    print_report([run.writer.path], as_json=False, html=tmp_path / "page.html")
    out = capsys.readouterr().out
    tables, _, _ = out.partition("report: ")
    assert max(map(len, tables.splitlines())) <= 80 and "pixelshuffle" in tables
    page = (tmp_path / "page.html").read_text()
    assert "Upsampling: five ways at each stage" in page and "Upsampling: checkerboards" not in page


def test_what_is_wrong_is_recorded_and_not_timed(tiny, tmp_path, monkeypatch):
    def wrong(x, weight):
        return tiny.variants["deconv"](x, weight) * 1.02

    broken = replace(tiny, variants={"nearest": tiny.variants["nearest"], "deconv_nchw": wrong})
    monkeypatch.setattr(upsampling, "UPSAMPLING", broken)
    monkeypatch.setattr(UpsamplingTrial, "definitions", {kind: UPSAMPLING.variants[kind] for kind in UPSAMPLINGS})
    run = UpsamplingRun.new(asked(only=("speed",)), tmp_path, "test")
    assert run.execute(lambda done: None) == "failed"
    frame = reports.load(run.writer.path)
    assert set(frame.loc[frame["metric"] == "latency", "variant"]) == {"nearest"}
    assert {row[0] for row in failed_rows(frame)[1]} == {"deconv_nchw"}
    assert set(upsampling_summary(frame)["kind"]) == {"nearest"}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_every_variant_equals_its_definition(dtype, device):
    trial = UpsamplingTrial(UPSAMPLING, TINY, dtype, device)
    trial.prepare()
    for variant in UPSAMPLING.variants:
        error, allowed = trial.check(variant)
        assert 0 < error <= allowed, variant


def test_an_interrupted_run_goes_on_with_what_is_left(tiny, tmp_path):
    def interrupt(done):
        if done.case.startswith("training") and done.variant == "nearest":
            raise KeyboardInterrupt

    run = UpsamplingRun.new(asked(only=("nearest",), seeds=2), tmp_path, "test")
    with pytest.raises(KeyboardInterrupt):
        run.execute(interrupt)
    assert reports.load_runs(run.writer.path)["run_status"].item() == "interrupted"
    again, seen = UpsamplingRun.resume(run.writer.path), []
    assert again.done == {(TINY.name, "fp32"), (0, "nearest")}
    assert again.execute(seen.append) == "done"
    assert [(done.case, done.variant) for done in seen] == [("training with seed 1", "nearest")]
    frame = reports.load(run.writer.path)
    trained = frame[frame["training_steps"] == 2]
    assert trained["seed"].value_counts().nunique() == 1 and set(trained["seed"]) == {0, 1}
    with pytest.raises(StoreError, match="is finished"):
        UpsamplingRun.resume(run.writer.path)


def test_a_spent_budget_stops_and_is_said(tiny, tmp_path):
    run = UpsamplingRun.new(asked(), tmp_path, "test")
    assert run.execute(lambda done: None, Deadline(0.0)) == "stopped"
    (notes,) = reports.load_runs(run.writer.path)["notes"]
    assert any(note.startswith("stopped before the copy") for note in notes)
    assert UpsamplingRun.resume(run.writer.path).done == set()


def test_a_training_that_diverges_is_recorded_and_the_others_go_on(tiny, tmp_path, monkeypatch):
    really = SmallGan.generated

    def spoilt(self):
        if isinstance(doublings(self.generator)[0], torch.nn.ConvTranspose2d):
            with torch.no_grad():
                self.generator.layers[0].conv.weight.fill_(float("nan"))
        return really(self)

    monkeypatch.setattr(upsampling, "UPSAMPLINGS", ("deconv", "nearest"))
    monkeypatch.setattr(SmallGan, "train", lambda self, steps: (spoilt(self), [self.step() for _ in range(steps)]))
    run = UpsamplingRun.new(asked(only=("training",)), tmp_path, "test")
    assert run.execute(lambda done: None) == "failed"
    frame = reports.load(run.writer.path)
    lost = frame[frame["status"] == "diverged"]
    assert set(lost["variant"]) == {"deconv"} and "losses are" in lost["error"].iloc[0]
    assert {row[0] for row in checkerboard_rows(frame)[1] if row[1] == "2"} == {"nearest"}


def test_a_training_is_the_same_for_the_same_seed_and_collapsed_is_nearest(tiny):
    images = real_images("any").images_NHWC
    made = {}
    for kind in ("nearest", "collapsed", "nearest"):
        gan = SmallGan(kind, images, seed=3, device=CPU)
        gan.train(2)
        made.setdefault(kind, []).append(gan.generated())
    first, second = made["nearest"]
    assert torch.equal(first, second)
    torch.testing.assert_close(made["collapsed"][0], first, rtol=1e-3, atol=1e-3)
    gan.train(1)
    assert not torch.equal(gan.generated(), second)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"only": ("nothing",)}, "nothing matches 'nothing'; words: speed, training, deconv"),
        ({"only": ("speed training",)}, "nothing matches"),
        ({"steps": 0}, "seeds is 1 and steps 0; expected at least 0 and 1"),
        ({"seeds": -1}, "seeds is -1"),
    ],
)
def test_what_cannot_be_asked_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        asked(**fields)


def test_images_that_no_generator_makes_are_refused(monkeypatch):
    for shape, message in (((20, 32, 3), "expected square ones"), ((20, 20, 3), "image_size is 20")):
        data = Dataset.create("odd", torch.zeros(3, *shape, dtype=torch.uint8), torch.zeros(3).long(), ("any",))
        monkeypatch.setattr(upsampling, "load_split", lambda name, split, data=data: Split(data, data))
        with pytest.raises(ValueError, match=message):
            real_images("odd")
