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
    assert 'after "better"           comes "than" (2)' in output


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
    (None, "No such file"), (b"", "no words"), (b" \n\t", "no words"), (b"\xff\xfe\x00a", "UTF-8"),
    (b"a\0b", "null characters")])
def test_a_file_that_is_no_text_gets_one_line_and_exit_code_2(tmp_path, capsys, content, message):
    path = tmp_path / "file.txt"
    if content is not None:
        path.write_bytes(content)
    assert main([str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and message in captured.err


@pytest.mark.parametrize("arguments, message", [
    (["--prompt", "Ada eats"], 'the text has no word "eats"'),
    (["--prompt", "ada"], '"ada" (it has "Ada")'),
    (["--prompt", ""], "at least one word"),
    (["--save", "no/such/folder/b.npz"], "No such file"),
    (["--load", "no.npz"], "No such file"),
    (["."], "directory" if sys.platform != "win32" else "denied")])
def test_a_mistake_gets_one_line_and_exit_code_2(capsys, arguments, message):
    if arguments[0] == "--load":
        arguments = arguments + ["--prompt", "a"]
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and message in err


@pytest.mark.parametrize("arguments", [["--generate", "-1"], ["--n-gram", "0"], ["--max-words", "0"], ["--max-words", "x"],
                                       ["--load", "a", "--save", "b"], ["file", "--load", "a"]])
def test_arguments_that_make_no_sense_exit_with_code_2(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2 and "error" in capsys.readouterr().err


def test_load_needs_a_prompt_and_a_file_from_save(tmp_path, capsys):
    path = str(tmp_path / "b.npz")
    assert main(["--save", path]) == 0
    capsys.readouterr()
    assert main(["--load", path]) == 2
    assert "--prompt" in capsys.readouterr().err
    arrays = iclca_ref.load_arrays(path)
    for name, wrong in [("words", np.ones(3)), ("words", np.array("Ada")), ("sizes", np.array([99.0, 2.0])),
                        ("sizes", np.array(2)), ("sizes", np.array([142, 1])), ("sizes", np.array([10, 2])),
                        ("sizes", np.array([142, 0]))]:
        np.savez(path, **arrays | {name: wrong})
        assert main(["--load", path, "--prompt", "Ada"]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1, err
    (tmp_path / "b.npz").write_bytes(b"junk")
    assert main(["--load", path, "--prompt", "Ada"]) == 2
    assert "b.npz" in capsys.readouterr().err


def test_help_explains_every_option(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for option in "FILE", "--prompt", "--generate", "--n-gram", "--max-words", "--save", "--load":
        assert re.search(rf"^  {option}\b.*", text, re.M), option


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

    assert run(MemoryError()) == 2 and "--max-words" in capsys.readouterr().err
    assert run(KeyboardInterrupt()) == 130 and capsys.readouterr().err == ""


def script(*arguments, **options):
    return subprocess.run([sys.executable, ROOT / "iclca_ref.py", *arguments], capture_output=True, **options)


def test_the_script_survives_a_terminal_without_utf_8(tmp_path):
    (tmp_path / "a.txt").write_text("élan vital élan vital", encoding="utf-8")
    done = script(tmp_path / "a.txt", "--prompt", "vital", env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and b"?lan" in done.stdout and not done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell's pipe")
def test_the_script_survives_a_closed_pipe():
    done = subprocess.run(f"'{sys.executable}' '{ROOT / 'iclca_ref.py'}' | true", shell=True, capture_output=True)
    assert not done.stderr
