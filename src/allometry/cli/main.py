"""``allometry``: the entry point, and what all commands share: exit codes and one line for what went wrong.

Exit 0 when done, 2 for input that cannot be used, 1 for a failure, 130 when interrupted.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from allometry import __version__
from allometry.cli import doctor as doctor_commands
from allometry.cli import fit as fit_commands
from allometry.cli import forecast as forecast_commands
from allometry.cli import paper as paper_commands
from allometry.cli import plan as plan_commands
from allometry.cli import runs as runs_commands
from allometry.cli import study as study_commands

app = typer.Typer(
    name="allometry",
    help="Forecast what a model will do at a scale you have not paid for yet.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("forecast")(forecast_commands.forecast)
app.command("fit")(fit_commands.fit)
app.command("plan")(plan_commands.plan)
app.command("doctor")(doctor_commands.doctor)
app.add_typer(study_commands.app, name="study")
app.add_typer(paper_commands.app, name="paper")
app.add_typer(runs_commands.app, name="runs")


def _version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


@app.callback()
def _all(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from.")] = False,
) -> None:
    if debug:
        os.environ["ALLOMETRY_DEBUG"] = "1"  # of this process, and of the workers that it starts


def main() -> None:
    """Run the command line; a person gets one sentence, with ``--debug`` the trace before it."""
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except (KeyboardInterrupt, typer.Abort):
        print("Stopped. What has finished is stored; the same command goes on from there.", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if os.environ.get("ALLOMETRY_DEBUG"):
            import traceback

            traceback.print_exc()
        usage = getattr(error, "format_message", None)  # what the parser refuses: it says so itself
        if usage is not None:
            text = usage()
            print(text if "\n" in text else f"allometry: {text}", file=sys.stderr)
            sys.exit(2)
        print(f"allometry: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ValueError | TypeError | FileNotFoundError | ImportError) else 1)


if __name__ == "__main__":
    main()
