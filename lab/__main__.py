"""``python -m likeness.lab make`` trains the lab; ``… report`` measures adapters and the cure in it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..face.errors import LikenessError
from ..face.host import ROOT, StandaloneHost
from ..face.models import find
from ..face.vocabulary import CARD


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m likeness.lab", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    work = argparse.ArgumentParser(add_help=False)
    work.add_argument("--work", type=Path, default=ROOT / "build" / "lab", help="where records and weights are kept")
    work.add_argument("--processes", type=int, default=2, help="how many cores work, one thread each")
    train = commands.add_parser("make", parents=[work], help="train everything that is not there yet")
    train.add_argument("--until", default="", help="the last stage to train")
    measure = commands.add_parser("report", parents=[work], help="draw, measure, write table, plots and sheets")
    measure.add_argument("--out", type=Path, default=ROOT / "docs" / "lab")
    measure.add_argument("--quick", action="store_true", help="a few people and prompts, as the tests have it")
    choose = commands.add_parser("choose", parents=[work], help="try the cure's settings on ten other people")
    arguments = parser.parse_args()
    try:
        if arguments.command == "make":
            from . import stages

            stages.make(
                stages.Place(arguments.work, find(CARD, StandaloneHost()), arguments.processes), arguments.until
            )
        elif arguments.command == "choose":
            from . import writing

            writing.choose(arguments.work, arguments.processes)
        else:
            from . import writing

            writing.report(arguments.work, arguments.out, arguments.processes, arguments.quick)
    except LikenessError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    del choose
    return 0


if __name__ == "__main__":
    sys.exit(main())
