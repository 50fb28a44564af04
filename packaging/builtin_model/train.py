"""Trains the guide from scratch into assets/builtin-model: `python packaging/builtin_model/train.py`.

Everything is seeded. Text is drawn while training, so no sentence repeats on purpose.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from random import Random

import torch
from batches import IGNORE, Batch, Packer
from corpus import Corpus, read_questions
from evaluate import MODEL, score
from muon import Muon
from tokenizer import END, PAD, save_tokenizer, train_tokenizer
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

SEED = 2403
VOCABULARY = 2560
CONTEXT = 2048
THREADS = 2
ROWS, WIDTH = 8, 128
LONG_WIDTHS, LONG_EVERY = (256, 512, 1024), 3
LEARNING_RATE, FINAL_SHARE, WARM_UP = 2.5e-3, 0.02, 50


def tokenizer_texts(corpus: Corpus, rng: Random) -> Iterator[str]:
    """Yield questions of every kind, and each answer often enough that its words become tokens."""
    for _ in range(60_000):
        yield corpus.turn(rng).question
    for intent in corpus.intents:
        for answer in intent.answers:
            yield from [answer] * 60


def build(tokenizer: Tokenizer) -> LlamaForCausalLM:
    """Build the untrained model of 2.3 million parameters."""
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
        bos_token_id=None,
        eos_token_id=tokenizer.token_to_id(END),
        pad_token_id=tokenizer.token_to_id(PAD),
    )
    return LlamaForCausalLM(config)


def begin(corpus: Corpus) -> tuple[LlamaForCausalLM, Tokenizer]:
    """Train a tokenizer and create an untrained model."""
    tokenizer = train_tokenizer(tokenizer_texts(corpus, Random(SEED)), VOCABULARY)
    return build(tokenizer), tokenizer


def load(folder: Path) -> tuple[LlamaForCausalLM, Tokenizer]:
    """Load a trained guide in fp32."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, Tokenizer.from_file(str(folder / "tokenizer.json"))


def loss_of(model: LlamaForCausalLM, batch: Batch) -> Tensor:
    """Return the mean cross entropy of the answers' tokens; the output head runs on their positions only."""
    hidden = model.model(
        input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.positions, use_cache=False
    ).last_hidden_state
    wanted = batch.labels[:, 1:]
    learned = wanted != IGNORE
    return functional.cross_entropy(model.lm_head(hidden[:, :-1][learned]), wanted[learned])


def gradients(model: LlamaForCausalLM, batch: Batch) -> tuple[float, tuple[Tensor, ...]]:
    """Compute loss and gradients of one batch in a thread; writes nothing shared."""
    loss = loss_of(model, batch)
    return loss.item(), torch.autograd.grad(loss, tuple(model.parameters()))


def draw(packer: Packer, step: int) -> Batch:
    """Draw a batch of short dialogues, or every LONG_EVERY steps of long ones."""
    return packer.long(ROWS * WIDTH, LONG_WIDTHS) if step % LONG_EVERY == 0 else packer.short(ROWS, WIDTH)


def rate(step: int, steps: int) -> float:
    """Return the share of the learning rate: a linear rise, then a cosine down to FINAL_SHARE."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    done = (step - WARM_UP) / max(1, steps - WARM_UP)
    return FINAL_SHARE + (1 - FINAL_SHARE) * 0.5 * (1 + math.cos(math.pi * done))


def optimizers_of(model: LlamaForCausalLM, peak: float) -> list[torch.optim.Optimizer]:
    """Use Muon for the layers' matrices, which here needs half as much text, and AdamW for embedding and norms."""
    matrices = [weight for weight in model.model.layers.parameters() if weight.dim() == 2]
    chosen = {id(weight) for weight in matrices}
    rest = [weight for weight in model.parameters() if id(weight) not in chosen]
    adam = torch.optim.AdamW(rest, lr=peak, betas=(0.9, 0.98), weight_decay=0.0)
    return [Muon(matrices, peak), adam]


def train(model: LlamaForCausalLM, tokenizer: Tokenizer, packer: Packer, steps: int, peak: float) -> None:
    """Train; print the loss every 50 steps and the development score after each third."""
    optimizers = optimizers_of(model, peak)
    schedules = [torch.optim.lr_scheduler.LambdaLR(each, lambda step: rate(step, steps)) for each in optimizers]
    # One batch per thread: with matrices this small, threads inside an operation wait more than they work.
    pool = ThreadPoolExecutor(THREADS, initializer=torch.set_num_threads, initargs=(1,))
    started, mean = time.monotonic(), 0.0
    for step in range(1, steps + 1):
        drawn = [draw(packer, step) for _ in range(THREADS)]
        losses, parts = zip(*pool.map(partial(gradients, model), drawn), strict=True)
        for weight, *grads in zip(model.parameters(), *parts, strict=True):
            weight.grad = torch.stack(grads).mean(0)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        mean += sum(losses) / THREADS / 50
        if step % 50 == 0:
            print(f"step {step}/{steps}  loss {mean:.4f}  {time.monotonic() - started:.0f} s", flush=True)
            mean = 0.0
        if step % max(1, steps // 3) == 0 and step < steps:
            share, _ = score(model.eval(), tokenizer, read_questions("development.json"))
            print(f"development {share:.1%}", flush=True)
            model.train()


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Write weights in bf16, configuration, greedy generation defaults and tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16)
    model.generation_config.do_sample = False
    model.generation_config.max_new_tokens = 160
    # The application passes at most this many messages: errors grow with the number of earlier turns.
    model.generation_config.remembered_turns = 17
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, CONTEXT, folder)
    (folder / "model.safetensors").chmod(0o644)


def main() -> None:
    """Parse arguments, train, save, and report both held-out sets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--out", type=Path, default=MODEL)
    parser.add_argument("--start", type=Path, help="a guide to go on from, as after answers were reworded")
    parser.add_argument("--learning-rate", type=float, default=LEARNING_RATE)
    options = parser.parse_args()
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    corpus = Corpus()
    model, tokenizer = begin(corpus) if options.start is None else load(options.start)
    train(model, tokenizer, Packer(corpus, tokenizer, Random(SEED + 1)), options.steps, options.learning_rate)
    save(model, tokenizer, options.out)
    for name in ("development.json", "evaluation.json"):
        share, misses = score(model.eval(), tokenizer, read_questions(name))
        print(f"{name}: {share:.1%} answered as intended, {len(misses)} missed", flush=True)


if __name__ == "__main__":
    main()
