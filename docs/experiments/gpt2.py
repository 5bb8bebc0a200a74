"""GPT-2 with its context converted, approximately (ICLCA §6.4).

FOLDER is GPT-2's release: config.json, model.safetensors, vocab.json, merges.txt; without it, a
small GPT-2 with random weights. Prints how the prompt goes on with the context in front, dropped,
and converted, and how far the logits are. GPT-2's positions are absolute, so Assumption 4.3 fails:
a prompt's go on here as if the context were there; in the row "dropped" they start again.

    python docs/experiments/gpt2.py [FOLDER] [--context TEXT] [--prompt TEXT] [--m M ...]
"""
import re
from functools import partial
import numpy as np
from common import at_least, command_line, start, told
from pretrained.bpe import decode, encode
from pretrained.decoding import continuation, sampler
from pretrained.gpt2 import build, placed, read, tokenizer_of
from pretrained.kept import logits, measure
from pretrained.rules import RULES, contexts, converted, random_features


@told
def main(argv=None):
    cli = command_line(__doc__, "one size, 2 tokens")
    cli.add_argument("folder", nargs="?", help="GPT-2's release folder")
    cli.add_argument("--context", default="Bill Gates and Paul Allen founded Microsoft.")
    cli.add_argument("--prompt", default=" The name of the company is")
    cli.add_argument("--m", type=at_least(1), nargs="+", default=[4, 8, 16], help="rows per head")
    cli.add_argument("--generate", type=at_least(1), default=12, help="tokens to add (12)")
    a = cli.parse_args(argv)
    if not (a.context and a.prompt):
        cli.error("--context and --prompt need text")
    rng, sizes, n = np.random.default_rng(0), *((a.m[:1], 2) if a.quick else (a.m, a.generate))
    model, tokenizer = read(a.folder) if a.folder else (build(    # gains about 1
        lambda name, *n: rng.standard_normal(n, "f") / 8 + bool(re.search("ln.*weight", name)),
        vocab_size=257, n_positions=512, d=64, n_layer=4, n_head=4), tokenizer_of([]))
    context, prompt = encode(a.context, tokenizer), encode(a.prompt, tokenizer)
    there = placed(model, len(context))    # where the prompt stands, whatever is in front
    study = continuation(model, [context] * 8, 20, choose=sampler(rng), place=placed)
    layers = contexts(model, context, study, context, reader=there)
    rules = RULES | {"random features": partial(random_features, rng=rng)}
    right = logits(model, context + prompt)[len(context):]
    print(f"context: {len(context)} tokens, prompt: {len(prompt)} tokens\n\n"
          f"{'':30}{'error of logits':>16}{'KL':>8}   continuation")
    for name, reader, ids, biases in (
            ("with the context in front", model, context + prompt, None),
            ("dropped, in its place", there, prompt, None), ("dropped", model, prompt, None),
            *((f"{name}, m = {m}", there, prompt, converted(rule(layers, m)))
              for name, rule in rules.items() for m in sizes)):
        _, kl, error = measure(logits(reader, ids, biases)[-len(prompt):], right, prompt)
        text = decode(continuation(reader, ids, n, biases, place=placed), tokenizer)
        print(f"{name:30}{error:>16.2%}{kl:>8.3f}   {text!r}")


if __name__ == "__main__":
    start(main)
