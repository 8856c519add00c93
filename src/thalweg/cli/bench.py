"""The command `thalweg bench`."""

from typing import Annotated

import typer

from thalweg.cli import console
from thalweg.cli.options import Device, Json
from thalweg.core.errors import UserError

EXAMPLE = "Example: `thalweg bench --nets cnn --batch 64 --threads 1`"


def bench(
    nets: Annotated[list[str] | None, typer.Option(help="plain, cnn, resnet, mlp, repeatable; else all.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Chains, repeatable; else 64, 256.", min=1, max=65536)] = None,
    threads: Annotated[list[int] | None, typer.Option(help="Threads, repeatable; else 1, 2.", min=1, max=256)] = None,
    rounds: Annotated[int, typer.Option(help="Rounds that count; more for a busy machine.", min=1)] = 5,
    dual: Annotated[bool, typer.Option(help="Also training and sampling by dual score matching.")] = True,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure how fast chains run on this machine, beside a tutorial's loop and the bare convolutions.

    Then how fast dual score matching trains and samples, beside plain eager code.

    Under five minutes. `python benchmarks/chain.py` in a clone of the repository measures other libraries as well.
    """
    from thalweg.bench import chains
    from thalweg.bench import dual as dual_bench
    from thalweg.core.device import find_device

    place = str(find_device(device))
    chosen = list(dict.fromkeys(nets or chains.NETS))  # what is given twice shares a row
    sizes, counts = list(dict.fromkeys(batch or [64, 256])), list(dict.fromkeys(threads or [1, 2]))
    counts = counts if threads or place == "cpu" else [1]
    rows, refusal = [], chains.bf16_pays(place)
    unknown = [net for net in chosen if net not in chains.NETS]
    if unknown:
        raise UserError(f"must be one of {', '.join(chains.NETS)}", argument="--nets", value=unknown[0])
    if refusal:
        console.say(refusal)
    for net in chosen:
        for size in sizes:
            for number in counts:
                console.say(f"{net}, {size} chains, threads: {number} …")
                rows += chains.measure(net, size, number, rounds=rounds, bf16=refusal is None, device=place)
    works = [(work, number) for work in dual_bench.WORK for number in counts] if dual else []
    duals = []
    for work, number in works:
        console.say(f"dual score matching, {work}, threads: {number} …")
        duals += dual_bench.measure(work, number, rounds=min(rounds, 5), device=place)
    if not as_json:
        typer.echo(chains.table(rows))
        typer.echo("\n" + dual_bench.table(duals) if duals else "")
    found = {"rows": [row._asdict() for row in rows], "dual": [row._asdict() for row in duals], "bf16": refusal}
    console.emit(found, as_json)
