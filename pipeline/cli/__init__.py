"""The verbs of `hyco` that need no Prefect, one module for each group; importing this package registers them all."""

from pipeline.commands import classify as classify
from pipeline.commands import data as data
from pipeline.commands import exchange as exchange
from pipeline.commands import learning as learning
from pipeline.commands import registry as registry
from pipeline.commands import serve as serve
