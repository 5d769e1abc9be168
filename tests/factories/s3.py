"""A bucket on an S3 server of this machine, for this process and those that it starts."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import s3fs

from hyco.storage import store as stores
from tests.chaos.faulty_s3 import FaultyS3


@contextmanager
def bucket(rate: float = 0.0, seed: int = 0) -> Iterator[tuple[str, FaultyS3]]:
    """Yield the URL of an empty bucket and its server; `rate` is the fraction of requests that meet a fault."""
    server = FaultyS3(rate=0.0, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": server.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": "1",  # so that the faults reach us
        }.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()  # it keeps endpoint and credentials
        name = f"hyco-{uuid.uuid4().hex[:12]}"
        s3fs.S3FileSystem().mkdir(name)
        server.rate = rate
        try:
            yield f"s3://{name}", server
        finally:
            s3fs.S3FileSystem.clear_instance_cache()
            stores._probed().clear()
            server.close()
