"""GPT-2, its contexts converted: the tables of smollm2.py for the paper's own model (ICLCA §6.4).

PATH is the folder of GPT-2's release: config.json, model.safetensors, vocab.json, merges.txt;
without it, a small GPT-2 with random weights. GPT-2's positions are absolute, so Assumption 4.3
fails: after a converted context a prompt's go on as if the context were there.

    python docs/experiments/gpt2.py [PATH] [--prompt TEXT] [--generate N] [--part PART] [--quick]
"""
import re
import numpy as np
import smollm2
from common import start, told
from pretrained import gpt2 as pretrained


def read(folder):
    """The release, or a small model whose gains are about 1."""
    def get(name, *shape):
        return rng.standard_normal(shape, "f") / 8 + bool(re.search("ln.*weight", name))

    rng = np.random.default_rng(0)
    model, tokenizer = pretrained.read(folder) if folder else (pretrained.build(
        get, vocab_size=257, n_positions=512, d=64, n_layer=4, n_head=4), pretrained.tokenizer_of([]))
    return model, tokenizer, len(model.layers[0].w_q)


@told
def main(argv=None):
    smollm2.run(__doc__, read, pretrained.placed, argv)


if __name__ == "__main__":
    start(main)
