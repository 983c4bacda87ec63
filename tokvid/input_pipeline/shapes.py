"""Moving Shapes as a source; whole compositions are held out. The shapes themselves are in `tokvid/shapes/`."""

from tokvid.input_pipeline.source import Source
from tokvid.shapes.drawing import ShapesDataset

SOURCE = Source(
    open=lambda config: ShapesDataset(config.videos, config.seed),
    held_out=lambda config: ShapesDataset(config.videos, config.seed, held_out=True),
)
