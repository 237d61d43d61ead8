"""What the importance matrix is worth, and whether it is right, on the embedded pair.

    python -m bench.quantize [--per-level 12]

The pair is merged at lambda 0.7. The importance matrix comes from written-out calibration answers through
the streaming engine; it is compared with one from forward hooks in transformers on the same tokens. Then each
type is made with and without it, and its KL divergence to the F16 file measured on held-out questions with
their answers: on every position, since the answers alone are too certain here to be disturbed.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from bench.tiny import MICRO_TOKENS, PAIR, written_questions
from export.gguf.architecture import gguf_names
from export.gguf.write import write_gguf
from quant.divergence import divergence
from quant.gguf import NEED_IMATRIX, Settings, quantize
from quant.imatrix import Inputs, write_imatrix
from rpam_lite.checkpoint.source import CheckpointSource
from rpam_lite.checkpoint.write import write_checkpoint
from rpam_lite.fit.batches import micro_batches
from rpam_lite.merge.apply import MergedSource
from rpam_lite.streaming.ends import Ends
from rpam_lite.streaming.inputs import squared_inputs
from rpam_lite.streaming.merged import one_parent
from rpam_lite.streaming.passes import Streamed
from rpam_lite.streaming.skeleton import Skeleton
from rpam_lite.streaming.weights import WeightSource

LAMBDA = 0.7
TYPES = ("Q4_K_M", "IQ4_XS", "Q3_K_M", "IQ3_XXS")


def streamed(folder: Path, token_ids: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Sums of squared inputs by weight, from the streaming engine."""
    merged = CheckpointSource(folder)
    skeleton = Skeleton(folder)
    source = WeightSource(merged, merged, skeleton, "exact")
    ends = Ends(merged, merged, skeleton, token_ids)
    model = Streamed(source, ends, one_parent("short"), torch.float32)
    return squared_inputs(model, token_ids, micro_batches([len(t) for t in token_ids], MICRO_TOKENS))


def hooked(folder: Path, token_ids: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same from forward hooks on transformers' model."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found: dict[str, torch.Tensor] = {}

    def watch(name: str, module: nn.Module) -> None:
        def add(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            squares = inputs[0].flatten(0, -2).double().square().sum(0)
            found[name] = found.get(name, 0) + squares

        module.register_forward_pre_hook(add)

    for name, module in model.model.layers.named_modules():
        if isinstance(module, nn.Linear):
            watch(f"model.layers.{name}.weight", module)
    with torch.no_grad():
        for ids in token_ids:
            model(ids[None])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="What the importance matrix is worth on the embedded pair.")
    parser.add_argument("--per-level", type=int, default=12)
    args = parser.parse_args()
    torch.manual_seed(0)
    calibration = written_questions(args.per_level)
    held_out = written_questions(args.per_level, "evaluation")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        long, short = CheckpointSource(PAIR / "long"), CheckpointSource(PAIR / "short")
        merge = MergedSource(long, short, lambda name: LAMBDA, torch.float16)
        write_checkpoint(merge, long.config, PAIR / "long", folder / "merged", torch.float16, {})
        merged = CheckpointSource(folder / "merged")
        base = folder / "f16.gguf"
        write_gguf(merged, merged.config, folder / "merged", base, "F16", "bench")

        ours = streamed(folder / "merged", calibration.token_ids)
        theirs = hooked(folder / "merged", calibration.token_ids)
        assert ours.keys() == theirs.keys()
        largest = max(float(((ours[n] - theirs[n]).abs() / theirs[n].clamp_min(1e-12)).max()) for n in theirs)
        print(
            f"importance matrix, {len(ours)} matrices, against forward hooks: largest relative difference {largest:.1e}"
        )

        tokens = sum(len(t) for t in calibration.token_ids)
        names = gguf_names(sorted(ours), merged.config, merged.folder)
        matrices = {names[n]: Inputs(s.numpy().astype(np.float32), tokens) for n, s in ours.items()}
        write_imatrix(matrices, folder / "imatrix.gguf", "bench")
        ids, starts = [t.tolist() for t in held_out.token_ids], [1] * len(held_out.token_ids)
        print(f"KL divergence to F16 in nats a token, {sum(map(len, ids)) - sum(starts)} held-out positions")
        print("| type | without | with | ratio | same top without | with |")
        print("|---|---:|---:|---:|---:|---:|")
        for name in TYPES:
            files = []
            for way, imatrix in (("without", None), ("with", folder / "imatrix.gguf")):
                if imatrix or name not in NEED_IMATRIX:
                    files.append(folder / f"{name}-{way}.gguf")
                    quantize(base, files[-1], name, Settings(1, imatrix, "bench"))
            told = divergence(base, files, ids, starts, 1)
            best = told[-1]
            if len(told) == 1:
                print(f"| {name} | refused | {best.mean:.2e} ± {best.error:.0e} | | | {best.same_top:.2%} |")
                continue
            plain = told[0]
            print(
                f"| {name} | {plain.mean:.2e} ± {plain.error:.0e} | {best.mean:.2e} ± {best.error:.0e} "
                f"| {best.mean / plain.mean:.2f} | {plain.same_top:.2%} | {best.same_top:.2%} |"
            )


if __name__ == "__main__":
    main()
