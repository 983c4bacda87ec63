"""The page in a browser: `tokvid studio`."""

import argparse

from tokvid.cli.options import Command, lora, weights
from tokvid.errors import UserError
from tokvid.io.files import Outputs
from tokvid.io.worlds import SHIPPED, WORLDS


class Studio(Command):
    """A server and its page."""

    name = "studio"
    help = "generate stories and edit videos on a page in the browser"
    details = (
        "Serves a page to this machine: scenes as cards, frames as they are generated, a history on disk. Every video "
        "has a story file, from which `tokvid story` generates the same bytes."
    )
    epilog = "Stop it with Ctrl-C. Unfinished videos are finished when it is started again."

    def arguments(self, parser: argparse.ArgumentParser, outputs: Outputs) -> None:
        parser.add_argument(
            "--weights",
            dest="first",  # no model is computed here
            type=weights,
            default=SHIPPED,
            metavar="NAME",
            help="trained weights that the page offers first: a folder or a URL; it always offers "
            f"{' and '.join(WORLDS)} (default shapes)",
        )
        parser.add_argument(
            "--lora",
            type=lora,
            action="append",
            metavar="FILE[:SCALE]",
            help="LoRA with which the page also offers the weights of --weights; SCALE multiplies it (default 1); may "
            "be repeated",
        )
        parser.add_argument(
            "--folder",
            type=outputs.folder,
            default="studio",
            metavar="FOLDER",
            help="folder of the history (default studio)",
        )
        parser.add_argument("--port", type=int, default=7860, metavar="N", help="port; 0: any free one (default 7860)")
        parser.add_argument(
            "--host",
            default="127.0.0.1",
            metavar="ADDRESS",
            help="address to listen on; on any but a loopback address, requests need the token of the printed link "
            "(default 127.0.0.1: this machine only)",
        )

    def run(self, options: argparse.Namespace) -> None:
        if not 0 <= options.port < 65536:
            raise UserError(f"--port should be 0 to 65535, got {options.port}")
        try:
            import fastapi  # noqa: F401
            import uvicorn  # noqa: F401
        except ImportError as error:
            raise UserError(f"the studio needs {error.name}: pip install 'tokvid[studio]'") from error
        from tokvid.io.urls import local
        from tokvid.studio.serving import serve
        from tokvid.studio.worlds import offered

        loras = [(local(path), scale) for path, scale in options.lora or ()]
        serve(options.folder, offered(dict(WORLDS), options.first, loras), (options.host, options.port))
