"""The verbs of `hyco` that need no Prefect, one module for each group; importing this package registers them all."""

from pipeline.cli import adopt as adopt
from pipeline.cli import boxes as boxes
from pipeline.cli import calibrate as calibrate
from pipeline.cli import classify as classify
from pipeline.cli import config_docs as config_docs
from pipeline.cli import convert as convert
from pipeline.cli import curation as curation
from pipeline.cli import data as data
from pipeline.cli import embeddings as embeddings
from pipeline.cli import look as look
from pipeline.cli import registry as registry
from pipeline.cli import serve as serve
from pipeline.cli import training as training
