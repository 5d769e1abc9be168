"""The names of the folders and files of a home. No other module contains them; storage.home.Home opens the contents.

HOME/
    detections/<digest>/   mined with one configuration: config.json, records/<unit>.json, objects/<sha256>.parquet,
                           reading-<n>/<unit> (older records that reading rules number n confirmed)
    packs/<digest>/        packed with one configuration: records/<unit>.json, objects/<sha256>.parquet (failures)
    hashes/<digest>/       perceptual hashes of images, of sources and evaluation sources: records/, objects/
    columns/<digest>/      values of columns of a source that packing filters by: records/, objects/
    shards/objects/        training shards, <sha256>.tar
    versions/              dataset versions, v-<hash>.json; `latest` and names/<label>: each the name of one;
                           experiments/<version>: fit, and not to become latest by itself
    quarantine/            v-<hash>.json: why a version must not be trained on
    deleted/               log/ and erased/: see storage.deletions; checked.json
    shelved/               <unit>.json: a unit of the source that a person has set aside
    marks/                 <key>.json, <key>-<box>.json: an image or a box that a person has called bad
    registry/              log/, models/, models/runs/, assessed/, reports/: see storage.model_registry
    runs/  fits/           directories of the training runs, and of the classifiers' runs
    embeddings/            of the images of a version by one model, made by `hyco search`
    cache/                 tables that are made again when they are absent: see storage.derived
    damaged/               files that `hyco verify --repair` moved there, under the same paths
    source/                the folder that is watched by default
    prefect/  deploy.json  Prefect's database, and the options of the last `hyco deploy`
"""

DETECTIONS = "detections"
PACKS = "packs"
HASHES = "hashes"
COLUMNS = "columns"
RECORDS = "records"  # of units, inside a folder of detections or packs
OBJECTS = "objects"  # named by the sha256 of their bytes
CONFIG = "config.json"

SHARDS = f"shards/{OBJECTS}"
VERSIONS = "versions"
LATEST = f"{VERSIONS}/latest"
LABELS = f"{VERSIONS}/names"
EXPERIMENTS = f"{VERSIONS}/experiments"
QUARANTINE = "quarantine"
SHELVED = "shelved"
MARKS = "marks"
DELETED = "deleted"
DELETIONS = f"{DELETED}/log"
ERASED = f"{DELETED}/erased"
CHECKED = f"{DELETED}/checked.json"
CACHE = "cache"

REGISTRY = "registry"
LOG = f"{REGISTRY}/log"
MODELS = f"{REGISTRY}/models"
MODEL_RUNS = f"{MODELS}/runs"  # small files of the runs of promoted models, one folder per model
ASSESSED = f"{REGISTRY}/assessed"
REPORTS = f"{REGISTRY}/reports"

RUNS = "runs"
FITS = "fits"
EMBEDDINGS = "embeddings"
DAMAGED = "damaged"
SOURCE = "source"
PREFECT = "prefect"
DEPLOYED = "deploy.json"

RECORDED = ("shards", DETECTIONS, PACKS, HASHES, COLUMNS, VERSIONS)
"""Folders in which a file that no record names is garbage."""
KEPT = (REGISTRY, QUARANTINE, SHELVED, MARKS, DELETED, RUNS, FITS, CACHE)
"""Folders in which only unfinished files are garbage."""


def version_path(name: str) -> str:
    """Return the path of the record of a version in the home."""
    return f"{VERSIONS}/{name}.json"


def quarantine_path(name: str) -> str:
    """Return the path of the quarantine record of a version."""
    return f"{QUARANTINE}/{name}.json"


def shelved_path(unit: str) -> str:
    """Return the path of the record of a unit that is set aside."""
    return f"{SHELVED}/{unit}.json"


def mark_path(name: str) -> str:
    """Return the path of the record of a mark, by its name."""
    return f"{MARKS}/{name}.json"


def log_path(number: int) -> str:
    """Return the path of a row of the registry's log in the home, by its number."""
    return f"{LOG}/{number:09d}.parquet"
