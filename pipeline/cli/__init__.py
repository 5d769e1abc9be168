"""The verbs of `hyco` that need no Prefect, one module for each group; importing this package registers them all."""

from hyco.pipeline.cli import adopt as adopt
from hyco.pipeline.cli import calibrate as calibrate
from hyco.pipeline.cli import classify as classify
from hyco.pipeline.cli import config_docs as config_docs
from hyco.pipeline.cli import convert as convert
from hyco.pipeline.cli import curation as curation
from hyco.pipeline.cli import data as data
from hyco.pipeline.cli import embeddings as embeddings
from hyco.pipeline.cli import look as look
from hyco.pipeline.cli import registry as registry
from hyco.pipeline.cli import serve as serve
from hyco.pipeline.cli import training as training
