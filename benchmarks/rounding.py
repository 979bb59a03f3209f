"""What rounding to bfloat16 makes of a coefficient: to nearest, and with the fixed dither.

    python benchmarks/rounding.py                             # Gaussian weights
    python benchmarks/rounding.py --zoo "$(evomerge zoo)"     # and the zoo's log-probabilities

For task vectors of several sizes and coefficients: the realised share (1 is what was asked for)
and the rounding error, both by the step that the merge takes from the base; of the weights, and of
the log-probabilities that the zoo's base gives to text when its math expert is merged into it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from evomerge.methods.kernels import weighted_sum
from evomerge.methods.rounding import dither_into

SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
LEVELS = (0.1, 0.25, 0.4, 0.499, 0.501, 0.6, 0.75, 0.9)
N = 1 << 21


def dithered(exact: torch.Tensor, name: str) -> torch.Tensor:
    """``exact`` rounded to bfloat16 with the dither of a tensor's name."""
    out = torch.empty(exact.shape, dtype=torch.bfloat16)
    dither_into(out, exact.contiguous(), name)
    return out


def compare(step: torch.Tensor, steps: list[torch.Tensor]) -> str:
    """Share and error of each rounded step beside the exact one."""
    size = float(step @ step)
    cells = [f"{float(s @ step) / size:6.2f} {float((s - step).norm()) / size**0.5:5.2f}"
             for s in steps]  # fmt: skip
    return " | ".join(cells)


def weights() -> None:
    """Gaussian weights and a Gaussian task vector."""
    random = torch.Generator().manual_seed(0)
    base = (0.02 * torch.randn(N, generator=random)).bfloat16()
    for size in SIZES:
        noise = 0.02 * size * torch.randn(N, generator=random)
        expert = (base.float() + noise).bfloat16()
        for level in LEVELS:
            exact = torch.empty(N)
            weighted_sum(exact, [base, expert], [1 - level, level])
            casts = (exact.bfloat16(), dithered(exact, "weights"))
            steps = [c.double() - base.double() for c in casts]
            found = compare(exact.double() - base.double(), steps)
            print(f"weights {size:6.1%} {level:6.3f} | {found}")


def zoo(folder: Path) -> None:
    """The zoo's base and math expert, its task vector scaled to several sizes."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32).eval()
    tokens = AutoTokenizer.from_pretrained(folder / "base")(Path(__file__).read_text())
    text = torch.tensor(tokens["input_ids"][: 8 * 128]).reshape(8, 128)
    base = {k: v.bfloat16() for k, v in load_file(folder / "base/model.safetensors").items()}
    task = {
        k: v - base[k].float() for k, v in load_file(folder / "math/model.safetensors").items()
    }
    scale = norm(base) / norm(task)

    def logits(found: dict[str, torch.Tensor]) -> torch.Tensor:
        model.load_state_dict({k: v.float() for k, v in found.items()}, strict=False)
        model.tie_weights()
        with torch.no_grad():
            return torch.log_softmax(model(text).logits.double(), -1).reshape(-1)

    start = logits(base)
    for size in SIZES:
        expert = {k: (b.float() + size * scale * task[k]).bfloat16() for k, b in base.items()}
        for level in LEVELS:
            exact = {k: b.float() + level * (expert[k].float() - b.float())
                     for k, b in base.items()}  # fmt: skip
            casts = (
                {k: v.bfloat16() for k, v in exact.items()},
                {k: dithered(v, k) for k, v in exact.items()},
            )
            found = compare(logits(exact) - start, [logits(c) - start for c in casts])
            print(f"logits  {size:6.1%} {level:6.3f} | {found}")


def norm(tensors: dict[str, torch.Tensor]) -> float:
    """Over all entries."""
    return float(sum(t.double().square().sum() for t in tensors.values()) ** 0.5)


def timing() -> None:
    """Milliseconds for the weighted sum of three tensors, rounded both ways."""
    tensors = [torch.randn(N).bfloat16() for _ in range(3)]
    out, exact = torch.empty(N, dtype=torch.bfloat16), torch.empty(N)

    def nearest() -> None:
        weighted_sum(out, tensors, [0.2, 0.4, 0.4])

    def dither() -> None:
        weighted_sum(exact, tensors, [0.2, 0.4, 0.4])
        dither_into(out, exact, "weights")

    print(f"{N / 1e6:.1f} M entries: nearest {best(nearest):.1f} ms, dither {best(dither):.1f} ms")


def best(call: Callable[[], None]) -> float:
    """The fastest of ten runs, in milliseconds."""
    times = []
    for _ in range(10):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def main() -> None:
    """Prints one line per size and coefficient."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--zoo", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("          size  asked | nearest: share error | dither: share error")
    weights()
    if options.zoo:
        zoo(options.zoo)
    timing()


if __name__ == "__main__":
    main()
