"""GPT-2 with its context converted, approximately (ICLCA §6.4).

    python docs/experiments/gpt2.py [FOLDER] [--context TEXT] [--prompt TEXT] [--m M ...]

FOLDER is GPT-2's release: config.json, model.safetensors, vocab.json, merges.txt; without it, a
small GPT-2 with random weights. Prints how the prompt goes on with the context in front, dropped,
and converted, and how far the logits are. GPT-2's positions are absolute, so Assumption 4.3 fails:
a prompt's go on here as if the context were there; in the row "dropped" they start again.
"""

import argparse
import re
import sys
from functools import partial
from pathlib import Path

import numpy as np

sys.path[:0] = map(str, Path(__file__).resolve().parents[1:3])
from iclca_ref import softmax_attend
from linear_transformer import forward, softmax
from pretrained.bpe import decode, encode
from pretrained.decoding import continuation, sampler
from pretrained.gpt2 import build, placed, read, tokenizer_of
from pretrained.look import contexts
from pretrained.rules import RULES, apart, converted, random_features


def main(argv=None):
    cli = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    cli.add_argument("folder", nargs="?", help="GPT-2's release folder")
    cli.add_argument("--context", default="Bill Gates and Paul Allen founded Microsoft.")
    cli.add_argument("--prompt", default=" The name of the company is")
    cli.add_argument("--m", type=int, nargs="+", default=[4, 8, 16], help="rows per head (4 8 16)")
    cli.add_argument("--generate", type=int, default=12, help="tokens to add (12)")
    cli.add_argument("--quick", action="store_true", help="one size, 2 tokens")
    a = cli.parse_args(argv)
    rng, sizes, n = np.random.default_rng(0), *((a.m[:1], 2) if a.quick else (a.m, a.generate))
    if not (a.context and a.prompt and min(sizes) >= 1 and n >= 1):
        cli.error("--context and --prompt need text, --m and --generate are from 1 on")
    try:
        model, tokenizer = read(a.folder) if a.folder else (build(    # gains about 1
            lambda name, *n: rng.standard_normal(n, "f") / 8 + bool(re.search("ln.*weight", name)),
            vocab_size=257, n_positions=512, d=64, n_layer=4, n_head=4), tokenizer_of([]))
        context, prompt = encode(a.context, tokenizer), encode(a.prompt, tokenizer)
        there = placed(model, len(context))    # where the prompt stands, whatever is in front
        study = continuation(model, [context] * 8, 20, choose=sampler(rng), place=placed)
        layers = contexts(model, context, study, context, reader=there)
        rules = RULES | {"random features": partial(random_features, rng=rng)}
        right = forward(model, context + prompt, None, softmax_attend)[0][len(context):]
        print(f"context: {len(context)} tokens, prompt: {len(prompt)} tokens\n\n"
              f"{'':30}{'error of logits':>16}{'KL':>8}   continuation")
        for name, reader, ids, biases in (
                ("with the context in front", model, context + prompt, None),
                ("dropped, in its place", there, prompt, None), ("dropped", model, prompt, None),
                *((f"{name}, m = {m}", there, prompt, converted(rule(layers, m)))
                  for name, rule in rules.items() for m in sizes)):
            logits = forward(reader, ids, biases, softmax_attend)[0][-len(prompt):]
            p, q = softmax(right), softmax(logits)
            text = decode(continuation(reader, ids, n, biases, place=placed), tokenizer)
            print(f"{name:30}{apart(logits, right):>16.2%}"
                  f"{(p * np.log(p / q)).sum(axis=-1).mean():>8.3f}   {text!r}")
        return 0
    except (OSError, ValueError) as error:
        print(f"gpt2.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")    # a terminal without UTF-8
    sys.exit(main())
