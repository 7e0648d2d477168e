"""The command line: `tmixture fit`, `tmixture predict` and `tmixture describe`.

    tmixture fit embeddings/ --components 40 --output mixture.safetensors
    tmixture predict mixture.safetensors embeddings/
    tmixture describe mixture.safetensors

Embeddings are files, folders of files, or URLs: .npy and safetensors are memory-mapped, .parquet, .arrow, .feather and
.zarr are read a block at a time, .npz one at a time, so that their number of rows does not matter. Whatever is killed
goes on where it was when the same command is run again.

    torchrun --nproc-per-node 4 --max-restarts 3 -m tmixture fit embeddings/ -k 40 -o mixture.safetensors

shares the files out between processes, of one machine or of many, with the same result. Those that are left after one
was lost begin again at the last checkpoint.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

import tmixture


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command, and return the exit status: 0, 2 after an error, 130 after Ctrl-C."""
    arguments = parser().parse_args(argv)
    try:
        # Only now: torch takes seconds to import, and questions about usage do not need it.
        getattr(importlib.import_module("tmixture.commands"), arguments.command)(arguments)
    except KeyboardInterrupt:
        print("tmixture: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError) as error:
        print(f"tmixture: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Help that shows the defaults that there are."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return super()._get_help_string(action) if action.default not in (None, False) else action.help


def parser() -> argparse.ArgumentParser:
    """The arguments of all commands."""
    whole = argparse.ArgumentParser(
        prog="tmixture", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    whole.add_argument("--version", action="version", version=f"tmixture {tmixture.__version__}")
    commands = whole.add_subparsers(dest="command", required=True, metavar="fit | predict | describe")

    def add(command: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(command, help=text, description=text, formatter_class=Formatter)

    fit = add("fit", "Fit a mixture to embeddings, and save it.")
    fit.add_argument("embeddings", nargs="+", help="files, folders or URLs; together they are the data")
    fit.add_argument("--output", "-o", type=Path, required=True, help="safetensors file for the mixture")
    fit.add_argument("--components", "-k", type=int, required=True, help="number of components")
    fit.add_argument("--dof", type=float, default=4.0, help="degrees of freedom; inf is Gaussian")
    fit.add_argument("--learn-dof", choices=("shared", "component"), help="learn them")
    fit.add_argument(
        "--covariance",
        default="diag",
        help="diag, full, spherical or lowrank scales, or tied, tied_diag, tied_spherical: one for all",
    )
    fit.add_argument("--rank", type=int, help="of lowrank scales")
    fit.add_argument("--reg-covar", type=number_or_auto, default="auto", help="added to the variances")
    fit.add_argument("--normalize", action="store_true", help="divide each row by its norm, in predict as well")
    fit.add_argument("--init", choices=("kmeans", "kmeans++", "random"), default="kmeans", help="how to start")
    fit.add_argument("--n-init", type=int, default=1, help="starts, of which the best after ten iterations goes on")
    fit.add_argument("--max-iter", type=int, default=100, help="most EM iterations")
    fit.add_argument("--tol", type=float, default=1e-4, help="nats per row that may be left to gain")
    fit.add_argument("--background", action="store_true", help="the last component takes rows that belong nowhere")
    fit.add_argument("--allow-missing", action="store_true", help="NaN says that a value is missing")
    fit.add_argument("--max-candidates", type=int, help="components that a row is compared with; all by default")
    fit.add_argument("--chunk-size", type=int, help="rows worked on at a time")
    fit.add_argument("--seed", type=int, default=0, help="of the start")
    fit.add_argument(
        "--checkpoint-every",
        type=positive,
        default=10,
        metavar="N",
        help="iterations; each checkpoint costs two passes over the data",
    )
    fit.add_argument(
        "--timeout", type=float, default=7200, metavar="SECONDS", help="that a process waits for the slowest"
    )

    predict = add(
        "predict",
        "Write label (-1 for a background), confidence and outlier weight to NAME.clusters.npy, or of a table to a "
        "table of its kind.",
    )
    predict.add_argument("mixture", type=Path, help="what fit has written")
    predict.add_argument("embeddings", nargs="+", help="files, folders or URLs")
    predict.add_argument("--output-dir", type=Path, help="where to write; next to each file by default")

    predict.add_argument(
        "--keep", action="append", default=[], metavar="COLUMN", help="of a table, such as ids; may be repeated"
    )

    for command in (fit, predict):
        command.add_argument(
            "--pattern", default="*", help="names of the files to take from folders, such as 'x-*.npy'"
        )
        command.add_argument("--name", help="of the array in files of several, or of columns, joined by commas")
        command.add_argument("--device", default="cpu", help="where to compute, such as cuda")
        command.add_argument("--overwrite", action="store_true", help="start anew, whatever is there")

    describe = add("describe", "Print what a mixture is made of.")
    describe.add_argument("mixture", type=Path, help="what fit has written")
    describe.add_argument("--json", action="store_true", help="for programs")
    return whole


def positive(text: str) -> int:
    """A positive integer."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"a positive integer is needed, got {text}")
    return number


def number_or_auto(text: str) -> float | str:
    """A number, or "auto"."""
    return text if text == "auto" else float(text)


if __name__ == "__main__":
    sys.exit(main())
