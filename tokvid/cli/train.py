"""Training: `tokvid train tokenizer`, `tokenize`, `train transformer`."""

import argparse
import sys

from tokvid.cli.options import Command, processes_arguments, recipe_arguments
from tokvid.errors import UserError
from tokvid.io.files import Outputs

STOPPED = 143  # as if SIGTERM had ended it: whoever started it should not take it for done


class Train(Command):
    """Trains the tokenizer or the transformer of a recipe."""

    name = "train"
    help = "train the tokenizer or the transformer of a recipe"
    details = "Run again with the same --workdir, it resumes from the last checkpoint."
    epilog = "A model is trained in three steps: train tokenizer, tokenize, train transformer."
    sets_fields = True
    large_arrays = True
    less_memory = (
        "use a smaller batch, a larger train_….accumulate, remat or a smaller model; tokvid plan says what fits"
    )

    def arguments(self, parser: argparse.ArgumentParser, outputs: Outputs) -> None:
        model = "tokenizer: video to tokens and back; transformer: text to tokens, after tokenizer and tokenize"
        parser.add_argument("model", choices=("tokenizer", "transformer"), help=model)
        recipe_arguments(parser, outputs)
        rewards = (
            "fine-tune the transformer in --train_transformer.start so that its videos get higher rewards: shapes (the "
            "prompt's attributes, read from the pixels), or module:function, a Python function from a video, uint8 "
            "(T, H, W, 3), and its prompt, as the model reads it, to a number"
        )
        parser.add_argument("--rewards", default="", metavar="NAME", help=rewards)
        processes_arguments(parser)

    def run(self, options: argparse.Namespace) -> None:
        from tokvid.distributed import joined

        if options.rewards:
            if options.model != "transformer":
                raise UserError("--rewards is for the transformer; leave it out")
            options.fields = [*options.fields, f"--reward.name={options.rewards}"]
        with joined(options.coordinator, options.processes, options.process, options.distributed):
            done = _train(options)
        if not done:
            sys.exit(STOPPED)


def _train(options: argparse.Namespace) -> bool:
    """False where it was stopped before its last step."""
    from tokvid.api.training import check_rewarded, train_tokenizer, train_transformer
    from tokvid.io.compiled import keep_programs
    from tokvid.train.recipe import open_recipe

    recipe = open_recipe(options.config, options.fields)
    if options.model == "transformer":
        options_given = (word for word in options.fields if word.startswith("--"))  # of which values follow
        check_rewarded(recipe, (word.removeprefix("--").partition("=")[0] for word in options_given))
    keep_programs()
    steps = {"tokenizer": train_tokenizer, "transformer": train_transformer}
    return steps[options.model](recipe, options.workdir)


class Tokenize(Command):
    """Writes the token cache and the text model of a recipe."""

    name = "tokenize"
    help = "encode a recipe's videos to tokens, once, for training the transformer"
    details = (
        "Needs a trained tokenizer in --workdir. Also trains the text model on the captions; with --tokens.t5 FOLDER, "
        "a T5 reads them instead, and its hidden states are stored with the tokens. Run again after an interruption, "
        "it keeps what it has; what is finished is neither made again nor replaced."
    )
    sets_fields = True
    large_arrays = True

    def arguments(self, parser: argparse.ArgumentParser, outputs: Outputs) -> None:
        recipe_arguments(parser, outputs)
        processes_arguments(parser)

    def run(self, options: argparse.Namespace) -> None:
        from tokvid.distributed import joined
        from tokvid.io.compiled import keep_programs
        from tokvid.train.recipe import open_recipe
        from tokvid.train.tokenize import write_token_cache

        processes = (options.coordinator, options.processes, options.process, options.distributed)
        with joined(*processes, agree_to_stop=False):  # what is whole by then is kept
            keep_programs()
            write_token_cache(open_recipe(options.config, options.fields), options.workdir)
