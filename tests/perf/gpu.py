"""python -m tests.perf.gpu: one table of training and grounding speed on a GPU; without one, its small form.

Needs torch and numpy, models/ and the training part of pipeline/; rows of the grounder need transformers as well and
are left out without it. Both ways of a step are first shown to compute the same loss and gradients in float32.

    python -m tests.perf.gpu                     # the table of docs/performance.md, on a GPU
    python -m tests.perf.gpu --only steps --batch 256
    python -m tests.perf.gpu --small --device cpu
"""

import argparse
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from tests.perf.bare import stand_in

stand_in()

from hyco.pipeline.runtime.device import matmul_rate, now  # noqa: E402
from hyco.pipeline.training.meter import peak_memory  # noqa: E402
from tests.perf import gpu_steps as steps  # noqa: E402

SECTIONS = ("steps", "pieces", "loss", "largest", "grounder")
SIDE, GROUNDED = 800, 16  # pixels of the short side and images per batch of the grounder
SMALL_SIDE = 96


def main(arguments: list[str] | None = None) -> int:
    """Measure and print the table, and write it as JSON."""
    parser = argparse.ArgumentParser(prog="tests.perf.gpu", description=main.__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="small towers and batches; always on a CPU")
    parser.add_argument("--batch", type=int, help="samples per step: 768, or 16 in the small form")
    parser.add_argument("--only", default=",".join(SECTIONS), help=f"some of {', '.join(SECTIONS)}")
    parser.add_argument("--eager", action="store_true", help="leave out the compiled steps")
    parser.add_argument("--json", default="build/gpu.json")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    small = options.small or device.type == "cpu"
    names = [name for name in options.only.split(",") if name]
    if unknown := set(names) - set(SECTIONS):
        parser.error(f"--only {', '.join(sorted(unknown))}: known are {', '.join(SECTIONS)}")
    half = torch.bfloat16 if device.type == "cuda" else None
    rate = matmul_rate(device, half or torch.float32)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(
        f"{name}, torch {torch.__version__}; a matrix product in {half or torch.float32}: {rate / 1e12:.3g} TFLOP/s"
    )
    rows: list[dict[str, Any]] = []
    for section in names:
        run = globals()[f"_{section}"]
        for row in run(device, small, options.batch or (16 if small else 768), rate, options.eager):
            rows.append({"section": section, **row})
            print("  ".join(f"{key} {_text(value)}" for key, value in rows[-1].items()), flush=True)
            _free(device)
    path = Path(options.json)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps({"device": name, "torch": torch.__version__, "matmul": rate, "rows": rows}, indent=1)
    )
    print(markdown(rows))
    print(f"{path} written")
    return 0


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table of docs/performance.md: a line per row, empty where a row has no such column."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---"] * len(columns)]
    lines += [[_text(row[key]) if key in row else "" for key in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _steps(
    device: torch.device, small: bool, batch: int, rate: float, eager: bool
) -> Iterator[dict[str, Any]]:
    gpu = device.type == "cuda"
    half, theirs = (torch.bfloat16, torch.float16) if gpu else (None, None)
    for name in ("small",) if small else ("ViT-S/16", "ViT-B/16"):
        config = steps.SIZES[name]
        equal = steps.agreement(config, 8, device)
        inputs = steps.draw(config, batch, device)
        flops = steps.step_flops(config, inputs)
        made: dict[str, Callable[[], Callable[[], object]]] = {
            "published way": lambda c=config, i=inputs: steps.PublishedStep(c, i, theirs),
            "ours, eager": lambda c=config, i=inputs: steps.OurStep(c, i, half),
        }
        if not eager:
            made["ours, compiled"] = lambda c=config, i=inputs: steps.OurStep(c, i, half, compiled=True)
        # On a GPU one after another, since two do not fit into its memory; on a shared CPU in turn.
        spent: dict[str, float] = {}
        peaks: dict[str, float] = {}
        waits: dict[str, int] = {}
        if gpu:
            for way, make in made.items():
                torch.cuda.reset_peak_memory_stats(device)
                step = make()
                spent |= steps.seconds({way: step}, device)
                peaks[way], waits[way] = peak_memory(device) / 1e9, host_waits(step)
                del step
                _free(device)
        else:
            spent = steps.seconds({way: make() for way, make in made.items()}, device)
        for way, each in spent.items():
            yield {
                "case": f"{name}, {way}",
                "batch": batch,
                "ms": 1e3 * each,
                "per second": batch / each,
                "ratio": spent["published way"] / each,
                "MFU %": 100 * flops / each / rate,
                "equal": equal,
                **({"GB": peaks[way], "host waits": waits[way]} if gpu else {}),
            }


def _pieces(
    device: torch.device, small: bool, batch: int, rate: float, eager: bool
) -> Iterator[dict[str, Any]]:
    """A batch more than five times as large, in the memory of one."""
    config = steps.SIZES["small" if small else "ViT-S/16"]
    whole = 4096 * batch // 768
    inputs = steps.draw(config, whole, device)
    half = torch.bfloat16 if device.type == "cuda" else None
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    spent = steps.seconds({"": steps.OurStep(config, inputs, half, micro_batch=batch)}, device, 2)[""]
    yield {
        "case": f"in pieces of {batch}",
        "batch": whole,
        "ms": 1e3 * spent,
        "per second": whole / spent,
        "MFU %": 100 * steps.step_flops(config, inputs) / spent / rate,
        **({"GB": peak_memory(device) / 1e9} if device.type == "cuda" else {}),
    }


def _loss(
    device: torch.device, small: bool, batch: int, rate: float, eager: bool
) -> Iterator[dict[str, Any]]:
    ways = steps.loss_steps(batch, 128 if small else 512, device)
    spent = steps.seconds(ways, device)
    for way, each in spent.items():
        yield {"case": f"loss, {way}", "batch": batch, "ms": 1e3 * each, "ratio": spent["cosine CLIP"] / each}


def _largest(
    device: torch.device, small: bool, batch: int, rate: float, eager: bool
) -> Iterator[dict[str, Any]]:
    first, last, limit = (128, 512, 5.0) if small else (8192, 1 << 20, 60.0)
    for size, spent, memory in steps.largest_batches(128 if small else 512, device, first, last, limit):
        yield {
            "case": "streaming loss",
            "batch": size,
            "ms": 1e3 * spent,
            **({"GB": memory} if device.type == "cuda" else {}),
        }


def _grounder(
    device: torch.device, small: bool, batch: int, rate: float, eager: bool
) -> Iterator[dict[str, Any]]:
    """Grounding DINO tiny with random weights, whose speed is that of the trained ones."""
    try:
        from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection
    except ImportError:
        print("grounder: left out, transformers is not installed")
        return
    config = GroundingDinoConfig()
    if small:
        config.encoder_layers = config.decoder_layers = 2
        config.num_queries = 50
    model = GroundingDinoForObjectDetection(config).eval().requires_grad_(False).to(device)
    side = SMALL_SIDE if small else SIDE
    wide = 32 * round(side * 4 / 3 / 32)
    ids = torch.randint(1100, 20000, (1, 32), device=device)
    ids[0, 0], ids[0, -1] = 101, 102
    ids[0, 4:-1:4] = 1012  # a period after every phrase

    def run(images: int, half: torch.dtype | None) -> Callable[[], object]:
        pixels = torch.randn(images, 3, side, wide, device=device)
        texts = {
            "input_ids": ids.expand(images, -1),
            "attention_mask": torch.ones_like(ids).expand(images, -1),
        }

        def step() -> None:
            with torch.inference_mode(), torch.autocast(device.type, half, enabled=half is not None):
                model(pixel_values=pixels, **texts)

        return step

    many = 2 if small else GROUNDED
    ways = {
        "batch 1, float32": (1, run(1, None)),
        f"batch {many}, bfloat16": (many, run(many, torch.bfloat16)),
    }
    spent = steps.seconds({way: step for way, (_, step) in ways.items()}, device, 3)
    rates = {way: images / spent[way] for way, (images, _) in ways.items()}
    for way, each in rates.items():
        images = ways[way][0]
        yield {
            "case": f"grounder {side} px, {way}",
            "batch": images,
            "ms": 1e3 * spent[way],
            "per second": each,
            "ratio": each / rates["batch 1, float32"],
        }


def host_waits(step: Callable[[], object]) -> int:
    """How often the host waits for the GPU in a step, as torch warns of it."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(one.message) for one in caught)


def _free(device: torch.device) -> None:
    if device.type == "cuda":
        now(device)
        torch.cuda.empty_cache()


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    raise SystemExit(main())
