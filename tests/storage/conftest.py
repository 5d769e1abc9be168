"""The same store tests on every filesystem."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyco.storage.store import Store


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """URL of a bucket on a local S3 server."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        import s3fs

        s3fs.S3FileSystem().mkdir("hyco-test")
        yield "s3://hyco-test"
    server.stop()


@pytest.fixture(params=["local", "memory", pytest.param("s3", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store on each kind of filesystem."""
    if request.param == "local":
        return Store(tmp_path / "home")
    unique = uuid.uuid4().hex
    return Store(
        f"memory://{unique}" if request.param == "memory" else f"{request.getfixturevalue('s3')}/{unique}"
    )
