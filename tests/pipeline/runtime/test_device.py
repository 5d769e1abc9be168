"""Names of devices: which GPU of several, and what is refused."""

import pytest
import torch

from hyco.pipeline.runtime import device as devices
from hyco.pipeline.runtime.device import autocasts, resolve_device


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch):
    """Pretend that there are so many GPUs."""
    for name in ("LOCAL_RANK", "HYCO_WORKER_NUMBER"):
        monkeypatch.delenv(name, raising=False)

    def there_are(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return there_are


def test_without_a_gpu(gpus) -> None:
    gpus(0)
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="torch finds no GPU: use --device cpu"):
        resolve_device("cuda")
    with pytest.raises(ValueError, match=r"'cuda:1' is not here \(0 GPUs\)"):
        resolve_device("cuda:1")


def test_each_process_takes_its_gpu(gpus, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(2)
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda", 0)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    assert resolve_device("cpu") == torch.device("cpu")
    monkeypatch.setenv("HYCO_WORKER_NUMBER", "3")
    assert resolve_device("auto") == torch.device("cuda", 1), "workers share the GPUs"
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert resolve_device("auto") == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="fewer processes"):
        resolve_device("auto")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x"])
def test_unknown_names_are_refused(gpus, name: str) -> None:
    gpus(1)
    with pytest.raises(ValueError, match="is unknown: use auto, cpu, cuda or cuda:N"):
        resolve_device(name)


@pytest.mark.parametrize(
    ("there", "rate", "taken"), [(True, 2e11, True), (True, 0.5e11, False), (False, 2e11, False)]
)
def test_a_cpu_computes_in_bfloat16_where_it_has_it_and_gains_by_it(
    monkeypatch: pytest.MonkeyPatch, there: bool, rate: float, taken: bool
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: there)
    monkeypatch.setattr(devices, "matmul_rate", lambda _, dtype: rate if dtype == torch.bfloat16 else 1e11)
    assert autocasts("bfloat16", torch.device("cpu")) == taken
    assert devices.has_bfloat16(torch.device("cpu")) == there and devices.has_bfloat16(
        torch.device("cuda", 0)
    )
    assert autocasts("bfloat16", torch.device("cuda", 0))
    assert not autocasts("float32", torch.device("cuda", 0))
