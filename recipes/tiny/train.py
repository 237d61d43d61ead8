"""Reproduce the embedded pair from nothing: `base`, and fine-tuned from it `long` and `short`.

    python -m recipes.tiny.train --out recipes/tiny --work runs/tiny-train
    python -m recipes.tiny.train --family cups --seed 2 --out runs/quality/cups-2 --work runs/quality/cups-2/work

`base` learns both ways of answering, the long one more often on harder questions; `long` and
`short` then learn to use one of them always. Only response tokens carry loss. Seeded, and
resumable: an interrupted run goes on from the last state in --work and ends the same way.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

from recipes.tiny.families import FAMILIES, Family
from recipes.tiny.phases import Phase
from recipes.tiny.splits import LEVELS
from recipes.tiny.tokenizer import (
    END_OF_TEXT,
    TURN_END,
    TURN_START,
    train_tokenizer,
    write_tokenizer_files,
)

TOKENS_A_BATCH = 4096
QUESTIONS_A_POOL = 1024
SAVE_EVERY = 100
SHORT_ANSWER_WEIGHT = 3.0
HARD = 6  # lowest level of the hard questions
Batch = tuple[torch.Tensor, torch.Tensor]  # token ids int64, loss weights float32: [questions, length]


KEPT = ("base", "long", "short")


def model_config(tokenizer: Tokenizer) -> Qwen2Config:
    """Widths are multiples of 256, so that every K-quant applies; the head is tied."""
    return Qwen2Config(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.token_to_id(TURN_END),
        pad_token_id=tokenizer.token_to_id(END_OF_TEXT),
    )


def batches(tokenizer: Tokenizer, family: Family, phase: Phase, seed: int) -> Iterator[Batch]:
    """Endless batches, right-padded and bucketed by length; they depend on phase and seed alone."""
    pad = tokenizer.token_to_id(END_OF_TEXT)
    pool = drawn = 0
    while True:
        rng = random.Random(f"{phase.stream or phase.name}-{seed}-{pool}")
        hardest = hardest_level(phase, drawn)
        easy = phase.easy_from is not None and drawn >= phase.easy_from
        rows = []
        for _ in range(QUESTIONS_A_POOL):
            # Answers in one's head that can be learnt at all are those of levels 1 and 2.
            if easy and rng.random() < phase.easy_share:
                level = rng.choice(phase.easy_levels)
            elif phase.hard_share and hardest > HARD and rng.random() < phase.hard_share:
                level = rng.randint(HARD, hardest)
            else:
                level = rng.randint(1, hardest)
            problem = family.draw(rng, level, "train", phase.max_start)
            prompt = f"{TURN_START}user\n{family.ask(problem, rng)}{TURN_END}\n{TURN_START}assistant\n"
            response = phase.respond(problem, rng)
            prompt_ids = tokenizer.encode(prompt).ids
            response_ids = tokenizer.encode(response + TURN_END).ids
            # The first token decides the style and weighs the same in both; an answer in one's head
            # is a few tokens only, so that the rest of it weighs more.
            rest = 1.0 if response.startswith("<think>") else SHORT_ANSWER_WEIGHT
            weights = [0.0] * len(prompt_ids) + [1.0] + [rest] * (len(response_ids) - 1)
            rows.append((prompt_ids + response_ids, weights))
        rows.sort(key=lambda row: len(row[0]))
        pooled = []
        while rows:
            # The longest row that remains sets the width, so that a batch stays within its tokens.
            count = max(1, TOKENS_A_BATCH // len(rows[-1][0]))
            pooled.append(rows[-count:])
            rows = rows[:-count]
        rng.shuffle(pooled)
        for batch in pooled:
            ids = [torch.tensor(row) for row, _ in batch]
            weights = [torch.tensor(w) for _, w in batch]
            yield (
                pad_sequence(ids, batch_first=True, padding_value=pad),
                pad_sequence(weights, batch_first=True),
            )
        pool += 1
        drawn += len(pooled)


def hardest_level(phase: Phase, step: int) -> int:
    """The curriculum of the first phase: levels 1 and 2 first, all eight after 960 steps."""
    if phase.parent is not None:
        return LEVELS[-1]
    return min(LEVELS[-1], 2 + step // 160)


def weighted_loss(logits: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Next-token cross-entropy, summed with the weights and divided by a constant.

    A constant, because a batch of short answers has few tokens: dividing by their number would make
    a short answer's decision token outweigh a long one's.
    """
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return (losses * weights[:, 1:].flatten()).sum() / (TOKENS_A_BATCH / 2)


def learning_rate_at(phase: Phase, step: int) -> float:
    """Linear warm-up, a plateau, and a linear descent to a tenth over the last quarter."""
    rise = (step + 1) / phase.warmup
    if not phase.decay:
        return phase.learning_rate * min(1.0, rise)
    fall = 0.1 + 0.9 * (phase.steps - step) / (0.25 * phase.steps)
    return phase.learning_rate * min(1.0, rise, fall)


def train(
    family: Family,
    phase: Phase,
    model: Qwen2ForCausalLM,
    tokenizer: Tokenizer,
    work: Path,
    seed: int,
    compiled: bool = False,
) -> None:
    """Train in place, saving model and optimizer to `work` every 100 steps and going on from there."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
    )
    state_file = work / f"{phase.name}.pt"
    step = 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        if state["trained_as"] != trained_as(phase, seed):
            sys.exit(f"{state_file}: was trained as {state['trained_as']}; remove it, or choose another --work.")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    forward = torch.compile(model, dynamic=True) if compiled else model
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task(phase.name, total=phase.steps, completed=step)
        model.train()
        for ids, weights in islice(batches(tokenizer, family, phase, seed), step, phase.steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(phase, step)
            loss = weighted_loss(forward(input_ids=ids, use_cache=False).logits, ids, weights)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            progress.update(bar, completed=step, description=f"{phase.name} loss {loss.item():.4f}")
            if step % SAVE_EVERY == 0 or step == phase.steps:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
                save_state(state_file, state | {"trained_as": trained_as(phase, seed)})
                progress.print(f"{time.strftime('%H:%M:%S')} {phase.name} step {step} loss {loss.item():.4f}")
    model.eval()


def trained_as(phase: Phase, seed: int) -> str:
    """What a saved state depends on, so that a changed phase does not go on from it unnoticed."""
    return str([seed, *(v for k, v in vars(phase).items() if k != "respond")])


def save_state(file: Path, state: dict[str, object]) -> None:
    """Write the state under a temporary name first, so that a kill never leaves half of it."""
    part = file.with_suffix(".part")
    torch.save(state, part)
    part.replace(file)


CARD = """---
license: apache-2.0
---

The {name} model of the pair that comes with rpam_lite, made by recipes/tiny/train.py; it knows one kind of question.
"""


def write_checkpoint(model: Qwen2ForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """An ordinary Hugging Face folder in bf16, complete under its name or absent."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    model.generation_config = GenerationConfig(
        eos_token_id=model.config.eos_token_id, pad_token_id=model.config.pad_token_id, max_length=1024
    )
    model.to(torch.bfloat16).save_pretrained(part)
    write_tokenizer_files(tokenizer, part)
    (part / "README.md").write_text(CARD.format(name=folder.name), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    part.replace(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the embedded pair and its base.")
    parser.add_argument("--out", type=Path, default=Path("recipes/tiny"), help="where base/ long/ short/ go")
    parser.add_argument("--work", type=Path, default=Path("runs/tiny-train"), help="training state")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--family", choices=sorted(FAMILIES), default="arithmetic", help="of questions")
    parser.add_argument("--only", help="train this phase, not all of them")
    parser.add_argument("--compile", action="store_true", help="1.4 times as fast; needs a C++ compiler")
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    args.work.mkdir(parents=True, exist_ok=True)
    family = FAMILIES[args.family]
    if args.only not in (None, *family.phases):
        parser.error(f"--only {args.only}: the phases of {family.name} are {', '.join(family.phases)}")
    tokenizer = train_tokenizer(family)
    for phase in family.phases.values() if args.only is None else [family.phases[args.only]]:
        torch.manual_seed(args.seed)
        model = Qwen2ForCausalLM(model_config(tokenizer))
        if phase.parent is not None:
            model.load_state_dict(torch.load(args.work / f"{phase.parent}.pt", weights_only=True)["model"])
        started = time.monotonic()
        train(family, phase, model, tokenizer, args.work, args.seed, args.compile)
        print(f"{phase.name}: {time.monotonic() - started:.0f} s")
        if phase.name in KEPT:
            write_checkpoint(model, tokenizer, args.out / phase.name)
    told = json.dumps({"family": family.name, "seed": args.seed})
    (args.out / "pair.json").write_text(told + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
