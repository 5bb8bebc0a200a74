"""The command line: a text becomes weights, and every mistake gets one line and exit code 2."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import iclca_ref
from iclca_ref import TEXT, _join_words, _split_words, main

ROOT = Path(__file__).parent.parent
ZEN = """Beautiful is better than ugly.
Explicit is better than implicit.
Errors should never pass silently.
Unless explicitly silenced.
There should be one-- and preferably only one --obvious way to do it."""


def answers(output):
    """The three continuations of every prompt, or the two without a text."""
    return {label: [a.strip() for a in re.findall(rf"^  {label}(.*(?:\n {{20,}}.*)*)", output, re.M)]
            for label in ("prompt", "with the text in context", "converted, without the text", "without either",
                          "largest difference of logits")}


def test_the_default_run_shows_the_same_words_with_the_text_and_converted(capsys):
    assert main([]) == 0
    output = capsys.readouterr().out
    found = answers(output)
    assert len(found["prompt"]) == 3
    assert found["with the text in context"] == found["converted, without the text"]
    assert not set(found["without either"]) & set(found["converted, without the text"])
    for in_context, prompt in zip(found["with the text in context"], found["prompt"]):
        assert len(_split_words(in_context)) == 6
        assert f"{prompt} {in_context}".split()[2] in TEXT
    assert all(float(d.split()[0]) < 1e-12 for d in found["largest difference of logits"])
    assert max(map(len, output.splitlines())) < 80
    assert "not trained" in output and "numbers" in output


def test_errors_should_never_pass_silently(tmp_path, capsys):
    (tmp_path / "zen.txt").write_text(ZEN, encoding="utf-8")
    assert main([str(tmp_path / "zen.txt"), "--prompt", "Errors should", "--generate", "3"]) == 0
    output = capsys.readouterr().out
    assert answers(output)["converted, without the text"] == ["never pass silently"]
    assert '\n  after "better"           comes "than" (2)\n' in output and '\n  after "is" _             comes "than" (2)\n' in output


def test_saved_and_loaded_without_the_text_the_answers_are_the_same(tmp_path, capsys):
    text, saved = tmp_path / "zen.txt", str(tmp_path / "zen.npz")
    text.write_text(ZEN, encoding="utf-8")
    prompts = ["--prompt", "Explicit is", "--prompt", "only one", "--n-gram", "3"]
    assert main([str(text), *prompts, "--save", saved]) == 0
    before = capsys.readouterr().out
    text.unlink()
    assert main(["--load", saved, *prompts[:4]]) == 0
    after = capsys.readouterr().out
    assert answers(after)["converted, without the text"] == answers(before)["converted, without the text"]
    table = "What the context has become"
    assert after.split(table)[1].strip() in before.split(table)[1]


def test_the_table_is_the_counts_of_the_text(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("a b a b a c", encoding="utf-8")
    assert main([str(tmp_path / "a.txt"), "--n-gram", "1", "--prompt", "a"]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == ['  after "a"                comes "b" (2), "c" (1)',
                                                         '  after "b"                comes "a" (2)']


def test_a_long_text_is_cut_and_says_so(tmp_path, capsys):
    (tmp_path / "long.txt").write_text("one two three four five six", encoding="utf-8")
    assert main([str(tmp_path / "long.txt"), "--max-words", "3", "--prompt", "two"]) == 0
    assert "6 words: cut after 3" in capsys.readouterr().out
    assert main([str(tmp_path / "long.txt"), "--max-words", "6", "--prompt", "two"]) == 0
    assert "cut after" not in capsys.readouterr().out


@pytest.mark.parametrize("content, message", [
    (None, "No such file"), (b"", "file.txt has no words\n"), (b" \n\t", "file.txt has no words\n"),
    (b"\xff\xfe\x00a", "file.txt is not a UTF-8 text\n"), (b"a\0b", "file.txt is not a text: it has null characters\n")])
def test_a_file_that_is_no_text_gets_one_line_and_exit_code_2(tmp_path, capsys, content, message):
    path = tmp_path / "file.txt"
    if content is not None:
        path.write_bytes(content)
    assert main([str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and message in captured.err


@pytest.mark.parametrize("arguments, message", [
    (["--prompt", "Ada qqq"], 'iclca_ref.py: the text has no word "qqq"\n'),
    (["--prompt", "ada"], 'iclca_ref.py: the text has no word "ada"; close to it are Ada, day, and'),
    (["--prompt", ""], "iclca_ref.py: a prompt needs at least one word\n"),
    (["--save", "no/such/folder/b.npz"], "No such file"),
    (["--load", "no.npz"], "No such file"),
    (["."], "directory" if sys.platform != "win32" else "denied")])
def test_a_mistake_gets_one_line_and_exit_code_2(capsys, arguments, message):
    if arguments[0] == "--load":
        arguments = arguments + ["--prompt", "a"]
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and message in err


@pytest.mark.parametrize("arguments, message", [
    (["--generate", "-1"], "argument --generate: must be at least 0, got -1\n"),
    (["--n-gram", "0"], "argument --n-gram: must be at least 1, got 0\n"),
    (["--max-words", "0"], "argument --max-words: must be at least 1, got 0\n"),
    (["--max-words", "x"], "argument --max-words: invalid"), (["--load", "a", "--save", "b"], "not allowed with"),
    (["file", "--load", "a"], "iclca_ref.py: error: --load answers without the text: leave FILE out\n")])
def test_arguments_that_make_no_sense_exit_with_code_2(capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_load_needs_a_prompt_and_a_file_from_save(tmp_path, capsys):
    path = str(tmp_path / "b.npz")
    assert main(["--save", path]) == 0
    capsys.readouterr()
    assert main(["--load", path]) == 2
    assert capsys.readouterr().err == "iclca_ref.py: --load needs a --prompt: the text is gone\n"
    arrays = iclca_ref.load_arrays(path)
    np.savez(path.replace("b.npz", "whole.npz"), **arrays)
    unwritten, other = r"iclca_ref.py: .*b.npz was not written by --save\n", r"iclca_ref.py: .*b.npz: layer \d's kv is .*\n"
    for name, wrong, message in [
            ("words", np.ones(3), unwritten), ("words", np.array("Ada"), unwritten), ("sizes", np.array([99.0, 2.0]), unwritten),
            ("sizes", np.array(2), unwritten), ("sizes", np.array([142, 1]), other), ("sizes", np.array([10, 2]), other),
            ("sizes", np.array([142, 0]), "iclca_ref.py: .* must be at least 1\n")]:
        np.savez(path, **arrays | {name: wrong})
        assert main(["--load", path, "--prompt", "Ada"]) == 2
        assert re.fullmatch(message, capsys.readouterr().err)
    iclca_ref.save_biases(path, iclca_ref.load_biases(path.replace("b.npz", "whole.npz")))
    assert main(["--load", path, "--prompt", "Ada"]) == 2 and "not written by --save" in capsys.readouterr().err
    (tmp_path / "b.npz").write_bytes(b"junk")
    assert main(["--load", path, "--prompt", "Ada"]) == 2
    assert "b.npz" in capsys.readouterr().err


README = (ROOT / "README.md").read_text("utf-8")


def without_rounding(output):
    """The output with the largest difference of the logits, which depends on the machine, as 0."""
    return re.sub(r"\d\.\de-\d\d", "0", output)


def test_the_readme_shows_what_the_program_prints(capsys):
    assert main(["--prompt", "Ada feeds"]) == 0
    assert without_rounding(capsys.readouterr().out).strip() in without_rounding(README)


HELP = """usage: iclca_ref.py [-h] [--prompt TEXT] [--generate N] [--n-gram K] [--max-words N] [--save NPZ | --load NPZ] [FILE]
Turn a text into the weights of a linear transformer (ICLCA, Algorithm 1), throw the text away, and continue prompts.
positional arguments: FILE a UTF-8 text; without it, a short built-in one
options: -h, --help show this help message and exit
--prompt TEXT words to continue, all from the text; may be repeated; by default three places of the text
--generate N words to add (default 6)
--n-gram K words of history that the model compares (default 2)
--max-words N cut the text after so many words and punctuation marks (default 1000)
--save NPZ write the biases and the vocabulary to this file
--load NPZ answer from a file written by --save, without any text"""


def test_help_explains_every_option(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0 and capsys.readouterr().out.split() == HELP.split()


TABLE = '''What the context has become, the last layer's b_KV (_ is any one word):
  after "Ann"              comes "likes" (2), "," (1)
  after "likes"            comes "tea" (2), "Ann" (1)
  after "tea"              comes "," (1), ";" (1)
  after ","                comes "Ann" (1), "Bob" (1)
  after "Bob"              comes "likes" (1)
  after ";"                comes "Zoë" (1)
'''

RUN = '''\
The text has 17 words: cut after 15 (--max-words).
A linear transformer of 2 layers, written down by hand and not trained, has
read 15 words of text.txt. Algorithm 1 has made biases of it, 900 numbers (7
kB), and the text is not needed any more.

  prompt                        Ann likes
  with the text in context      tea, Ann likes tea, Ann likes tea, Ann likes
                                tea, Ann likes tea, Ann likes tea
  converted, without the text   tea, Ann likes tea, Ann likes tea, Ann likes
                                tea, Ann likes tea, Ann likes tea
  without either                (no idea: every word has the same logit)
  largest difference of logits  0  (the first two)

  prompt                        likes tea, Bob
  with the text in context      likes tea, Bob likes tea, Bob likes tea, Bob
                                likes tea, Bob likes tea, Bob likes
  converted, without the text   likes tea, Bob likes tea, Bob likes tea, Bob
                                likes tea, Bob likes tea, Bob likes
  without either                (no idea: every word has the same logit)
  largest difference of logits  0  (the first two)

{TABLE}
Saved. Without the text: python iclca_ref.py --load FILE --prompt ...
'''

LOADED = '''\
A linear transformer of 2 layers, written down by hand and not trained, has
read b.npz. Algorithm 1 has made biases of it, 900 numbers (7 kB), and the text
is not needed any more.

  prompt                        Bob likes
  converted, without the text   tea
  without either                (no idea: every word has the same logit)

{TABLE}'''


def test_a_run_is_this_word_for_word(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("\ufeffAnn likes tea, Bob likes Ann, Ann likes tea; Zoë sleeps. The end", "utf-8")
    saved = str(tmp_path / "b.npz")
    arguments = [str(tmp_path / "text.txt"), "--prompt", "Ann likes", "--prompt", "likes tea, Bob", "--save", saved]
    assert main([*arguments, "--generate", "21", "--max-words", "15", "--n-gram", "1"]) == 0
    output = without_rounding(capsys.readouterr().out)
    assert output == RUN.replace("FILE", saved).replace("{TABLE}", TABLE)
    assert main(["--load", saved, "--prompt", "Bob likes", "--generate", "1"]) == 0
    assert capsys.readouterr().out == LOADED.replace("{TABLE}", TABLE)


def test_the_default_prompts_are_three_places_of_the_text(tmp_path, capsys):
    (tmp_path / "text.txt").write_text(" ".join(f"w{i}" for i in range(24)), "utf-8")
    assert main([str(tmp_path / "text.txt"), "--n-gram", "2", "--max-words", "20"]) == 0
    assert answers(capsys.readouterr().out)["prompt"] == ["w0 w1", "w6 w7", "w13 w14"]


def test_the_size_of_the_biases_is_printed_in_kilobytes(tmp_path, capsys):
    (tmp_path / "text.txt").write_text(" ".join(f"w{i}" for i in range(400)), "utf-8")
    assert main([str(tmp_path / "text.txt"), "--prompt", "w1", "--n-gram", "1"]) == 0
    output = " ".join(capsys.readouterr().out.split())
    numbers = 464 * 400 + 464 + 400 * 400 + 400                      # 400 + 64 tokens fit into layer 1's heads
    assert f"biases of it, {numbers:,} numbers ({8 * numbers / 1e3:,.0f} kB)" in output


def test_a_saved_text_leaves_room_for_64_more_tokens_and_says_when_it_is_used_up(tmp_path, capsys):
    path = str(tmp_path / "b.npz")
    assert main(["--save", path, "--prompt", "Ada"]) == 0
    assert iclca_ref.load_arrays(path)["sizes"].tolist() == [78 + 64, 2]
    assert main(["--save", path, "--prompt", "Ada feeds the", "--generate", "100"]) == 0
    assert iclca_ref.load_arrays(path)["sizes"].tolist() == [78 + 103, 2]
    assert main(["--load", path, "--prompt", "Ada " * 182, "--generate", "1"]) == 2
    assert "at most 181" in capsys.readouterr().err


def test_words_and_punctuation_are_split_and_joined():
    assert _split_words("Don't stop -- it's Ada-Lou's, isn't it?") == \
        ["Don't", "stop", "--", "it's", "Ada-Lou's", ",", "isn't", "it", "?"]
    assert _join_words(["Don't", "stop", ",", "ever", "!"]) == "Don't stop, ever!"


def test_memory_that_is_not_there_and_an_interrupt_end_without_a_traceback(monkeypatch, capsys):
    def run(error):
        def fail(*_):
            raise error
        monkeypatch.setattr(iclca_ref, "_run", fail)
        return main([])

    assert run(MemoryError()) == 2
    assert capsys.readouterr().err == "iclca_ref.py: not enough memory: try a smaller --max-words or --n-gram\n"
    assert run(KeyboardInterrupt()) == 130 and capsys.readouterr().err == ""


def script(*arguments, **options):
    return subprocess.run([sys.executable, ROOT / "iclca_ref.py", *arguments], capture_output=True, **options)


def test_the_script_survives_a_terminal_without_utf_8(tmp_path):
    (tmp_path / "a.txt").write_text("élan vital élan vital", encoding="utf-8")
    done = script(tmp_path / "a.txt", "--prompt", "vital", env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and b"?lan" in done.stdout and not done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX pipe")
def test_a_closed_pipe_ends_the_output_without_a_traceback(monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert main([]) == 2
        print("this goes nowhere, and does not raise", flush=True)


def test_a_prompt_that_repeats_itself_goes_on_without_the_text_too(capsys):
    assert main(["--prompt", "Ada feeds Ada", "--generate", "2"]) == 0
    assert answers(capsys.readouterr().out)["without either"] == ["feeds Ada"]


def test_long_words_stay_within_80_columns(tmp_path, capsys):
    a, b, c = "a" * 50, "b" * 45, "c" * 30
    (tmp_path / "text.txt").write_text(f"{a} {b} {a} {c} {b} {c} " * 2, "utf-8")
    assert main([str(tmp_path / "text.txt"), "--n-gram", "3"]) == 0
    output = capsys.readouterr().out
    assert max(map(len, output.splitlines())) < 80
    assert f'\n  after "{"b" * 33} comes "{"a" * 29}\n{"":33}{"a" * 21}" (2),\n' in output
    b = [f"b{i}1111111111111" for i in range(3)]
    (tmp_path / "text.txt").write_text(f"a {b[0]} a {b[1]} a {b[2]} a", "utf-8")
    assert main([str(tmp_path / "text.txt"), "--n-gram", "1", "--prompt", "a"]) == 0
    assert f'\n  after "a"                comes "{b[0]}" (1), "{b[1]}" (1),\n{"":33}"{b[2]}" (1)\n' in capsys.readouterr().out


def test_a_thousand_words_are_read_by_default(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("a b " * 500 + "c", "utf-8")
    assert main([str(tmp_path / "text.txt"), "--prompt", "a b"]) == 0
    assert capsys.readouterr().out.startswith("The text has 1,001 words: cut after 1,000 (--max-words).\n")
