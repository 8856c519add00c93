"""The command line: train, sample, score, classify, detect, inpaint, rerank, landscape, evaluate, bench.

Exit codes: 0 done, 1 the work failed, 2 the input is wrong (one line: what, where, how to mend), 130 and 143 stopped by
Ctrl-C and SIGTERM with the run saved. With `--json` the result is one JSON object on standard output; progress and
messages go to standard error. Nothing heavy is imported before a command runs, so `--help` is quick.
"""

import logging
import sys
from typing import Annotated

import typer

from thalweg.cli import bench, classify, console, detect, evaluate, inpaint, landscape, rerank, sample, score, train

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Energy-based models for work: train an energy, sample it, score with it, measure it.",
    rich_markup_mode="markdown",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from thalweg import __version__

        typer.echo(__version__)
        raise typer.Exit()


@app.callback()
def root(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the library's log.")] = False,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and stop.")
    ] = False,
) -> None:
    """Energy-based models for work."""
    import warnings

    warnings.filterwarnings("ignore", category=UserWarning, module="torch")
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s", stream=sys.stderr)


app.command(epilog=train.EXAMPLE)(train.train)
app.command(epilog=sample.EXAMPLE)(sample.sample)
app.command(epilog=score.EXAMPLE)(score.score)
app.command(epilog=evaluate.EXAMPLE)(evaluate.evaluate)
app.command(epilog=bench.EXAMPLE)(bench.bench)
app.add_typer(detect.app, name="detect")
app.command(epilog=classify.EXAMPLE)(classify.classify)
app.command(epilog=inpaint.EXAMPLE)(inpaint.inpaint)
app.add_typer(rerank.app, name="rerank")
app.command(epilog=landscape.EXAMPLE)(landscape.landscape)


def main() -> None:
    """The entry point."""
    console.run(app)


if __name__ == "__main__":
    main()
