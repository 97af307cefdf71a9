"""`wallclock translate` and `judge`: makes images with trained networks, and scores such images."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from wallclock.bench.cli.options import RUNS, Device, Json, Out
from wallclock.bench.cli.output import end_run, print_json, print_progress, typed_command


def translate(
    checkpoint: Annotated[Path, typer.Argument(help="A run, as of `wallclock run cyclegan`, or its checkpoint.")],
    source: Annotated[Path, typer.Argument(help="An image, or a folder of them.", metavar="IN")],
    target: Annotated[Path, typer.Argument(help="Folder to write to.", metavar="OUT")],
    direction: Annotated[str, typer.Option(help="a-to-b or b-to-a.")] = "a-to-b",
    size: Annotated[int | None, typer.Option(help="Edge to scale images to; as in training by default.")] = None,
    device: Device = "auto",
    json_: Json = False,
) -> None:
    """Translate images with a trained generator."""
    import torch

    from wallclock.bench.measure.environment import resolve_device
    from wallclock.bench.quality import translate as translating

    generator, recipe = translating.load_generator(checkpoint, direction)
    edge = recipe.image_size if size is None else size
    if edge < 8 or edge % 4:
        raise ValueError(f"--size is {edge}; expected a multiple of 4 from 8 up, pixels")
    place, show = torch.device(resolve_device(device)), partial(print_progress, style="yellow", soft_wrap=True)
    done, skipped = translating.translate(generator, source, target, edge, device=place, observe=show)
    if json_:
        print_json({"images": done, "unreadable": skipped, "folder": str(target)})
        return
    typer.echo(f"{done} images in {target}" + (f"; {skipped} files could not be read" if skipped else ""))


def judge(
    run: Annotated[Path, typer.Argument(help="A run, as of `wallclock run wgan`.")],
    features: Annotated[
        Path | None, typer.Option(help="Weights of the feature extractor; without, a network of our own is trained.")
    ] = None,
    extractor: Annotated[
        str, typer.Option(help="With --features: its name in torch-fidelity, such as inception-v3-compat.")
    ] = "wallclock-sprint",
    samples: Annotated[int, typer.Option(help="Images that a WGAN makes.")] = 1000,
    device: Device = "auto",
    out: Out = RUNS,
    json_: Json = False,
) -> None:
    """Judge what a trained network makes.

    FID, KID, precision, recall, coverage, memorisation, collapse.
    """
    import torch

    from wallclock.bench.measure.environment import resolve_device
    from wallclock.bench.quality import judge as judging

    if samples < 10:
        raise ValueError(f"--samples is {samples}; expected 10 or more")
    if features is None and extractor != "wallclock-sprint":
        raise ValueError(f"--extractor {extractor} needs its weights; give them with --features")
    path = judging.judge(
        run,
        weights=features,
        extractor=extractor,
        samples=samples,
        device=torch.device(resolve_device(device)),
        out=out,
        command=typed_command(),
        observe=partial(print_progress, style="yellow"),
    )
    end_run(path, "done", as_json=json_)
