"""What a training would need: `tokvid plan`."""

import argparse
from collections.abc import Callable

from tokvid.cli.option_values import refuse
from tokvid.cli.options import Command, config_argument, mesh_argument
from tokvid.cli.printing import in_any_case, say
from tokvid.io.files import Outputs, write_json, write_text


class Plan(Command):
    """What a recipe needs and can reach on a TPU pod or on GPUs. Ends the program with 1 where it doesn't fit."""

    name = "plan"
    help = "check whether a recipe fits a TPU pod, or GPUs, and how fast it can be there; needs neither"
    details = "Compiles the transformer's training step and its sampling loop for the pod and reads the programs."
    epilog = "Exit code: 0 it fits, 1 it doesn't, 2 a mistake in the arguments."
    sets_fields = True

    def arguments(self, parser: argparse.ArgumentParser, outputs: Outputs) -> None:
        config_argument(parser)
        parser.add_argument(
            "--topology",
            required=True,
            metavar="TYPE:SIZES",
            help="TPU type and chips along each dimension: v5p:4x4x8, v5e:16x16, …; or GPUs of one machine: h100:8",
        )
        parser.add_argument(
            "--slices",
            type=int,
            default=1,
            metavar="N",
            help="number of such slices, for data parallelism over the network between them (default 1)",
        )
        mesh_argument(parser, "(default: train_transformer.mesh of the recipe)")
        parser.add_argument(
            "--only",
            choices=("training", "decoding"),
            help="compile only the training step or only the sampling loop, in half the time",
        )
        rows = "decoding: rows of a latent frame per step; 0: token by token (default 0)"
        parser.add_argument("--rows", type=int, metavar="N", help=rows)
        parser.add_argument("--json", type=outputs.file(), metavar="FILE", help="also write the figures, as JSON")
        parser.add_argument(
            "--hlo", type=outputs.folder, metavar="FOLDER", help="also write the compiled programs, as HLO text"
        )

    def run(self, options: argparse.Namespace) -> None:
        from tokvid.plan import report
        from tokvid.train.recipe import open_recipe

        if options.only == "training":
            refuse(options, ["rows"], "is for decoding; leave out --only training")
        recipe, mesh = open_recipe(options.config, options.fields), options.mesh and tuple(options.mesh)
        steps: list[Callable[[], object]] = []

        def keep(name: str, text: str) -> None:
            if options.hlo is not None:
                steps.append(lambda: write_text(options.hlo / f"{name}.hlo", text))

        how = {"slices": options.slices, "only": options.only, "rows": options.rows or 0, "keep": keep}
        result = report.plan(recipe, options.topology, mesh, **how)
        if options.json is not None:
            steps.append(lambda: write_json(options.json, {"config": str(options.config), **result}))
        in_any_case(lambda: say("\n".join(report.lines(options.config, result))), *steps)
        if not result["fits"]:
            raise SystemExit(1)
