"""The command `thalweg evaluate`, and the report of a run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from thalweg.cli import console
from thalweg.cli.options import Device, Json, Run, Seed, Trust

if TYPE_CHECKING:
    from thalweg.bundle.bundle import Bundle
    from thalweg.data.catalog import Dataset
    from thalweg.monitor.vision.settings import VisionSettings


EXAMPLE = "Example: `thalweg evaluate runs/digits`"


JudgeName = Literal["vision", "statistical"]


def evaluate(
    run: Run,
    num_samples: Annotated[
        int | None, typer.Option("-n", help="Samples to measure; 1,000 if not given, 100 of texts.", min=20)
    ] = None,
    log_z: Annotated[bool, typer.Option("--log-z", help="First estimate and store the energy's constant.")] = False,
    judge: Annotated[
        JudgeName | None, typer.Option(help="Also ask a judge of the samples: a vision-language model, or figures.")
    ] = None,
    send_images: Annotated[
        bool, typer.Option("--send-images", help="Let contact sheets be sent to the model's server.")
    ] = False,
    model: Annotated[str | None, typer.Option(help="The vision-language model, as its server names it.")] = None,
    client: Annotated[str | None, typer.Option(help="anthropic, or openai for any compatible server.")] = None,
    base_url: Annotated[
        str | None, typer.Option(help="The server's address, such as http://127.0.0.1:8080/v1; implies openai.")
    ] = None,
    key_variable: Annotated[
        str | None, typer.Option(help="The environment variable with the key; not the key itself.")
    ] = None,
    max_cost: Annotated[float | None, typer.Option(help="Spend cap in US dollars; 1 if not given.", min=0)] = None,
    price: Annotated[
        tuple[float, float] | None,
        typer.Option(metavar="IN OUT", help="US dollars for a million tokens of input and of output."),
    ] = None,
    seed: Seed = 0,
    trust: Trust = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure a bundle against held-out data and write report.html and evaluation.json.

    With --judge also opinion.json, a section of the report, and one sentence. Of the vision judge nothing is sent
    without --send-images; without a key in the environment the statistical judge answers.
    """
    from thalweg.bundle.bundle import Bundle
    from thalweg.bundle.files import load_as

    given = {"model": model, "client": client, "base_url": base_url, "key_variable": key_variable, "max_cost": max_cost}
    if price is not None:
        given |= {"price_input": price[0], "price_output": price[1]}
    settings = _vision_settings(judge, send_images, given)
    bundle = load_as(run, Bundle, device=device)
    if log_z:
        console.say("estimating the constant …")
        console.say(str(bundle.log_z(seed=seed)))
    opinion = None if judge is None else _judge(bundle, settings, num_samples=num_samples, seed=seed)
    figures = evaluate_run(bundle, bundle.path, num_samples=num_samples, seed=seed)
    console.say(f"report in {bundle.path / 'report.html'}")
    console.emit(figures if opinion is None else {**figures, "opinion": opinion}, as_json)


def _vision_settings(judge: JudgeName | None, send_images: bool, given: dict[str, Any]) -> "VisionSettings | None":
    """The settings of a vision judge; UserError for options of it without it."""
    from thalweg.core.errors import UserError

    if judge == "vision":
        from thalweg.monitor.vision.settings import VisionSettings

        if given["client"] is None and given["base_url"] is not None:
            given = {**given, "client": "openai"}
        return VisionSettings.of(send_images=send_images, **given)
    if send_images or any(value is not None for value in given.values()):
        name = "send_images" if send_images else next(name for name, value in given.items() if value is not None)
        raise UserError("is an option of --judge vision", argument=f"--{name.replace('_', '-')}")
    return None


def _judge(
    bundle: "Bundle", settings: "VisionSettings | None", *, num_samples: int | None, seed: int
) -> dict[str, Any]:
    """The opinion, with its sentence and what was sent said to the user."""
    from thalweg import api

    if settings is not None and not settings.has_key():
        console.say(f"{settings.variable()} holds no key, so the statistical judge answers")
    console.say("asking the judge …")
    opinion = api.judge_run(bundle, bundle.path, settings, num_samples=num_samples, seed=seed)
    console.say(opinion.sentence)
    if opinion.judge == "vision":
        tried = f"requests with a contact sheet, to {opinion.host}: {opinion.images_sent}"
        console.say(f"{tried}; ${opinion.cost:.4f} spent in all, by the prices given")
    return opinion.model_dump(mode="json")


def evaluate_run(
    bundle: "Bundle", folder: Path, *, num_samples: int | None, seed: int, data: "Dataset | None" = None
) -> dict[str, Any]:
    """Figures and report; `data` where the run's were read already."""
    from thalweg import api

    console.say("evaluating on held-out data …")
    return api.evaluate_run(bundle, folder, num_samples=num_samples, seed=seed, data=data)
