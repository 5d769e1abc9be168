"""Moved: pipeline/embedder.py. This name lasts until everything imports the new one."""

from pipeline.embedder import Embedder as Embedder
from pipeline.embedder import Report as Report
from pipeline.embedder import batched as batched
from pipeline.embedder import whole as whole
