"""The demonstration: the model built by hand, words, the command line, biases in files."""

import io
import os
import re
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from itertools import product
from pathlib import Path
from unicodedata import normalize
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import example, given, strategies as st

import text_to_weights
from arguments import refused
from exact import assert_close, fractions, rngs
from iclca_ref import iclca
from linear_transformer import Bias, forward, random_transformer, rope_frequencies
from text_to_weights import TEXT, induction_transformer, load, load_biases, save_biases, split_words

SCRIPT = Path(__file__).parent.parent / "docs" / "text_to_weights.py"
COPY, VOTE = (LOOK_UP := induction_transformer(5, 41)).layers
kind = dict(rng=np.random.default_rng(0), vocab_size=5, d_model=8, n_layers=2, n_heads=2, dtype="f")
model = random_transformer(**kind)
biases = iclca(model, [1, 2, 3])
one, two, nan = np.ones((2, 3)), np.ones(2), np.full(2, np.nan)
ints, halves, whole = (Bias(f(one), f(two)) for f in (np.int64, np.float16, fractions))
texts = st.lists(st.integers(0, 4), min_size=1, max_size=40)
posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX files and signals")
bits = lambda biases: [(a.dtype, a.shape, a.tobytes()) for arrays in biases for a in arrays]


# ---- The model built by hand ---------------------------------------------------------------------

def counted(text, vocab_size, n):
    """At every place of the text the logits: histories compared one by one, less the tie rule."""
    votes = np.zeros((len(text), vocab_size))
    for i, j in zip(*np.tril_indices(len(text))):
        votes[i, text[j]] += sum(text[j - s] == text[i + 1 - s] for s in range(1, min(j, n) + 1))
    return votes - np.arange(vocab_size) / (4 * vocab_size)


@pytest.mark.proves("induction by hand", "Table 2")
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@given(texts, st.integers(1, 4), st.integers(0, 3))
def test_the_logits_count_how_far_the_histories_agree(dtype, text, n_gram, room):
    logits, _ = forward(induction_transformer(5, len(text) + room, n_gram, dtype), text)
    assert_close(logits + 1, (counted(text, 5, n_gram) + 1).astype(dtype), ulps=40 * len(text))

@pytest.mark.parametrize("wrong", [pytest.param(model, marks=pytest.mark.breaks(
    "induction by hand", what_was_done)) for model, what_was_done in (
        (LOOK_UP._replace(layers=(COPY._replace(theta=rope_frequencies(42)), VOTE)),
         "RoFormer's frequencies in the first layer"),
        (induction_transformer(5, 21), "a context and a prompt over max_length together"))])
@given(rng=rngs)
def test_with_other_frequencies_or_too_few_the_heads_do_not_count(wrong, rng):
    text = np.concatenate([rng.integers(1, 5, 20), [0], rng.integers(1, 5, 19), [1]])
    right, blurred = (forward(m, text[20:], iclca(m, text[:20]))[0] for m in (LOOK_UP, wrong))
    assert_close(right + 1, counted(text, 5, 2)[20:] + 1, ulps=2000)
    assert abs(blurred - right).max() > 0.1


@pytest.mark.proves("b_KV is the table of what followed what", "ours")
@given(texts, st.integers(1, 3))
def test_the_last_layers_b_kv_is_the_table_of_what_came_after_what(text, n_gram):
    table = [[[*zip(text, text[s:])].count((a, b)) for b in range(5)]
             for s in range(1, n_gram + 1) for a in range(5)]
    b_kv = iclca(induction_transformer(5, len(text), n_gram), text)[1].kv[0]
    assert_close(b_kv[:5 * n_gram] + 1, np.array(table) + 1.0, ulps=40 * len(text))

@pytest.mark.breaks("b_KV is the table of what followed what", "positions in the second layer")
@given(rngs)
def test_with_positions_in_the_second_layer_its_b_kv_is_no_table_of_counts(rng):
    other = LOOK_UP._replace(layers=(COPY, VOTE._replace(theta=rope_frequencies(10))))
    plain, blurred = (iclca(m, rng.integers(0, 5, 30))[1].kv for m in (LOOK_UP, other))
    assert_close(plain + 1, np.rint(plain) + 1, ulps=1000)
    assert abs(blurred - np.rint(blurred)).max() > 0.01


test_sizes_below_one_are_refused = refused(*(("at least 1", lambda n=n: induction_transformer(*n))
                                             for n in ((0, 5, 1), (5, 0, 1), (5, 5, 0))))


# ---- Words and the command line ------------------------------------------------------------------

@example("Don't stop -- it's Ada-Lou's, isn't it?", "Don't|stop|--|it's|Ada-Lou's|,|isn't|it|?")
@example("क्षि नमस्ते। தமிழ் மொழி می\u200cخواهم", "क्षि|नमस्ते|।|தமிழ்|மொழி|می\u200cخواهم")
@example("e\u0301lan x\u0323\u0301 \u2764\ufe0f a\x1b[2\0", "élan|x\u0323\u0301|\u2764\ufe0f|a|[|2")
@given(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("a' -.\u0301\u200d")),
       st.none())
def test_words_keep_their_marks_lose_control_characters_and_are_split_again(text, expected):
    assert split_words(" ".join(words := split_words(text))) == words
    assert expected in (None, "|".join(words))
    assert "".join(words) == re.sub(r"[\s\x00-\x1f\x7f-\x9f]", "", normalize("NFC", text))


def run(*arguments):  # exit code, output and errors
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as stop:
        sys.exit(text_to_weights.main([str(a) for a in arguments]))
    return stop.value.code or 0, out.getvalue(), err.getvalue()

def answers(output, label="converted, without the text"):  # one for each prompt
    found = re.findall(rf"^  {label}  (.*(?:\n {{30,}}.*)*)", output, re.M)
    return [" ".join(said.split()) for said in found]

def write(folder, text):
    (folder / "text.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder / "text.txt"


def test_the_default_run_says_the_same_words_with_the_text_and_converted():
    code, output, errors = run()
    assert not code + len(errors) and answers(output, "prompt")[1:] == ["clock strikes", "sails to"]
    said = ["the owl. Ben mends the", "at noon. Ben mends the", "Lisbon. Ben mends the clock"]
    assert answers(output, "with the text in context") == answers(output) == said
    assert all(float(d.split()[0]) < 1e-12 for d in answers(output, "largest difference of logits"))
    page, printed = (re.sub(r"\d\.\de-\d\d", "0", text) for text in (
        SCRIPT.with_name("demonstration.md").read_text("utf-8"), run("--prompt", "Ada feeds")[1]))
    assert printed.strip() in page


@pytest.mark.parametrize("text, arguments, lines", [
    ("Explicit is better than implicit. Flat is better than nested.", "--prompt|Flat|--generate|3",
     ["  converted, without the text   is better than",
      '  after "better"           comes "than" (2)', '  after "is" _             comes "than"']),
    ("a b a b a c", "--n-gram|1", ['  after "a"                comes "b" (2), "c" (1)']),
    (" ".join(f"w{i}" for i in range(24)), "--max-words|20",
     ["prompt w6 w7", "prompt w13 w14", "read the first 20 words (--max-words) of text.txt"]),
    ("hello", "", ["  (nothing has come after anything)",
                   "  converted, without the text   hello hello hello hello hello hello"]),
    ("a b", "--prompt|a b a|--generate|2", ["  without either                b a"]),
    ("a b", "--generate|0", ["  converted, without the text   (nothing, as --generate 0 asks"]),
    (f"{'a' * 50} {'b' * 45} {'a' * 50} {'c' * 30} " * 3, "--n-gram|3", []),
    (b"a b c " * 3 + b" " * 10**6 + b"\xff\0", "", ["read the first 9 words"]),
    ("\ufeff\ufffd a", "--prompt|\ufffd", ["  prompt                        \ufffd"])])
def test_a_text_of_ones_own_is_read_and_continued(tmp_path, text, arguments, lines):
    code, output, _ = run(write(tmp_path, text), *filter(None, arguments.split("|")))
    assert code == 0 and max(map(len, output.splitlines())) < 80
    for line in lines:
        assert line in (output if line[0] == " " else " ".join(output.split()))


def test_saved_and_loaded_without_the_text_answers_table_and_limits_are_the_same(tmp_path):
    text = write(tmp_path, "\ufeffÉlan vital, élan vital and élan once more. Plus नमस्ते")
    asked = ["--prompt", "élan", "--prompt", "and e\u0301lan", "--generate", 9]
    code, before, _ = run(text, *asked, "--n-gram", 3, "--save", saved := tmp_path / "b.npz")
    assert code == 0 and f"--load {saved} --prompt" in before
    code, after, _ = run("--load", saved, *asked)
    assert code == 0 and answers(after) == answers(before) and "in context" not in after
    assert after.split("What the context has become")[1].strip() in before
    os.link(text, tmp_path / "same")
    assert "--save would overwrite FILE" in run(text, "--save", tmp_path / "same")[2]
    # context and prompt together stay within what the model is exact for
    assert run("--save", saved, "--prompt", "Ada " * 60, "--generate", 10)[0] == 0
    names = list(dict.fromkeys(words := split_words(TEXT)))
    asked = "--load", saved, "--prompt", " ".join((words * 2)[5:74]), "--generate"
    logits = counted([names.index(word) for word in words + (words * 2)[5:74]], len(names), 2)[-1]
    assert answers(run(*asked, 1)[1]) == [names[logits.argmax()]]
    assert "there is room for 70 words after the text\n" in run(*asked, 2)[2]


@pytest.mark.parametrize("changes", [
    dict(words=one), dict(words=np.array("Ada")), dict(words=np.array(["a b"])), dict(d_0=nan),
    dict(words=two[:0]), dict(words=np.array([*"aab"])), dict(words=np.array(["a"])),
    dict(length=np.array(0)), dict(length=two), dict(kv_0=two), dict(kv_0=np.ones((10**5, 1, 1)))])
def test_load_refuses_what_save_has_not_written(tmp_path, changes):
    asked = "--load", (path := tmp_path / "b.npz"), "--prompt", "a"
    assert run(write(tmp_path, "a b a c"), "--save", path)[0] == run(*asked)[0] == 0
    np.savez(path, **load(path, dict) | changes)
    code, output, errors = run(*asked)
    assert (code, output, errors.count("\n")) == (2, "", 1) and "b.npz is not sound" in errors


@pytest.mark.parametrize("arguments, message", [
    ("no.txt", "No such file"), (".", "denied|directory"), ("--prompt|--", "expected one argument"),
    ("--prompt|Ada qqq", 'the text has no word "qqq"; close to it: none\n'),
    ("--prompt|ada", 'the text has no word "ada"; close to it: Ada, day, and\n'),
    ("--prompt|", "a prompt needs at least one word\n"), ("--prompt=--|t", "cannot be --|No such"),
    ("--save|.", ". is not an ordinary file\n"), ("--save|no/b", "No such file.*no.b"),
    ("--load|no|--prompt|a", "No such file"), ("--n-gram|" + "9" * 30, "GB, and 2 are allowed"),
    ("--n-gram|0", "whole number, 1 or more"), ("--generate|-1", "whole number, 0 or more"),
    ("--load|a", "--load needs a --prompt: the text is gone"), ("--load|a|--save|b", "not allowed"),
    ("", "No such file"), ("--save|", "not an ordinary"), ("file|--load|a", "answers without the"),
    ("a\0b", "null byte|null character"), ("\ud800", ""), ("--max-words|" + "9" * 5000, "invalid"),
    *((content, "text.txt is no UTF-8") for content in (
        b" \n\t", b"\xff\xfe\x00a", b"a\xe9", b"a\0b", b"a" * 1001))])
def test_a_mistake_gets_a_line_in_words_and_exit_code_2(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    texts = [write(tmp_path, arguments)] if isinstance(arguments, bytes) else []
    code, output, errors = run(*texts or arguments.split("|"))
    assert code == 2 and output == "" and [*tmp_path.iterdir()] == texts
    assert errors.splitlines()[-1].startswith("text_to_weights.py: ") and re.search(message, errors)
    assert errors.count("\n") == 1 or errors.startswith("usage: ")


def test_long_work_is_announced_after_the_prompts_were_read(monkeypatch, tmp_path):
    monkeypatch.setattr(text_to_weights, "iclca", Mock(side_effect=MemoryError))
    assert run() == (2, "", "text_to_weights.py: not enough memory\n")
    assert run(write(tmp_path, "a " * 501))[2].startswith("... reading 501 words of text.txt, 1 ")
    assert "no word" in run("--prompt", "Ada", "--prompt", "qqq")[2]


@posix
@pytest.mark.parametrize("command, code", [
    ("set -o pipefail; run | true", 141), ("run >&-", 0), ("PYTHONIOENCODING=ascii run", 0),
    *[(f"N={n} run --save b", 128 + n) for n in (2, 15)],    # SIGINT, SIGTERM in its midst
    *[("run > /dev/full", 2)] * os.path.exists("/dev/full")])
def test_signals_and_outputs_that_break_off_or_lack_letters_are_quiet(tmp_path, command, code):
    (tmp_path / "b").write_text("old")
    start = ("import os, runpy, numpy; numpy.savez = lambda *_, **__: os.kill(os.getpid(), int("
             f"os.environ['N'])); runpy.run_path({str(SCRIPT)!r}, run_name='__main__')")
    sh = f"run() {{ PYTHONPATH='{SCRIPT.parent}' '{sys.executable}' -c \"$0\" \"$@\"; }}; {command}"
    done = subprocess.run(["bash", "-c", sh, start], capture_output=True, cwd=tmp_path)
    assert done.returncode == code and (not done.stdout if code > 128 else done.stdout.isascii())
    assert re.fullmatch(b"text_to_weights.py: .*No space left.*\n" * (code == 2), done.stderr)
    assert [p.name for p in tmp_path.iterdir()] == ["b"] and (tmp_path / "b").read_text() == "old"


# ---- Biases in files -----------------------------------------------------------------------------

def test_saved_biases_come_back_the_same_to_the_bit_and_fit_no_other_model(tmp_path):
    many = [Bias(np.full((5, 4, 2, 3), i, float), np.full((5, 4, 2), -i, float)) for i in range(12)]
    for saved, of in (many, None), ([Bias(one[:, :0], two)], None), (biases, model):
        save_biases(tmp_path / "b", saved, words=["a", "é"])
        assert bits(load_biases(tmp_path / "b", of)) == bits(saved)
        assert load(tmp_path / "b", dict)["words"].tolist() == ["a", "é"]
    np.savez(tmp_path / "b.npz", kv_0=one.T, d_0=one[0])  # what NumPy itself has saved
    assert bits(load_biases(tmp_path / "b.npz")) == bits([Bias(one.T, one[0])])
    for change in {"n_layers": 1}, {"n_layers": 3}, {"d_model": 16}, {"n_heads": 1}, {"dtype": "d"}:
        with pytest.raises(ValueError, match="b .*fit.*: (layer 0 has .* the model's|. layers )"):
            load_biases(tmp_path / "b", random_transformer(**kind | change))


@pytest.mark.parametrize("saved, more", [(saved, {}) for saved in (
    [], None, [None], [(one,)], Bias(one, two), biases[0], [Bias(one, one[0])], [ints], [halves],
    [Bias(two, one[0, 0])], [Bias(one * np.inf, two)], [Bias(one, nan)], [whole],
    [Bias(one, np.float32(two))], [Bias(one > 0, two > 0)])] + [(biases, more) for more in (
        {"words": np.array([None])}, {"kv_0": biases[1].kv}, {"d_7": two}, {"a" * 70_000: two},
        {"a/b.npy": two}, {"allow_pickle": two}, {"file": two})])
def test_what_cannot_be_loaded_is_not_saved(tmp_path, saved, more):
    with pytest.raises((TypeError, ValueError)):
        save_biases(tmp_path / "b", saved, **more)
    assert not list(tmp_path.iterdir())


def npy(array=two, **says):  # a .npy file, which may say something else of itself than it is
    np.lib.format.write_array_header_1_0(
        stream := io.BytesIO(), np.lib.format.header_data_from_array_1_0(array) | says)
    return stream.getvalue() + array.tobytes()

def zipped(*members, names=("kv_0.npy", "d_0.npy"), method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(stream := io.BytesIO(), "w", method) as file:
        for name, data in zip(names, members):
            file.writestr(name, data)
    return stream.getvalue()


@pytest.mark.parametrize("content, why", [
    (b"", "not a zip"), (npy(), "not a zip"), (zipped(b"junk"), "magic"),
    (zipped(npy()[:12]), "EOF"), (zipped(npy(descr="|O")), "Object"), (zipped(npy(shape="((")), ""),
    (zipped(npy(shape=(10**12,), descr="<U0")), "than|alloc"), (zipped(npy(shape=(10**30, 0))), ""),
    (zipped(npy(), npy(), names=("kv_0.npy", "kv_0")), "damaged"), (zipped(), "layers need"),
    (zipped(bytes(10**6), method=zipfile.ZIP_DEFLATED), "compressed"), (zipped(npy(one)), "need"),
    (zipped(npy(one), npy()).replace(b"(2,", b"(0,"), "damaged"), (zipped(npy(shape=(-1, 2))), ""),
    (zipped(npy(one), npy(), names=("kv_1", "d_1")), "need"), (zipped(npy(shape=(10**12,))), ""),
    (zipped(npy(one), npy(one[0])), "no Bias"), (zipped(npy(one), npy(nan)), "finite")])
def test_what_is_no_npz_or_says_wrong_things_of_itself_is_refused(tmp_path, content, why):
    (tmp_path / "b").write_bytes(content)
    with pytest.raises(ValueError, match=f"b is not sound, or does not fit: .*({why})"):
        load_biases(tmp_path / "b")


@pytest.mark.parametrize("name, error", [("numpy.savez", OSError(28, "No space left")), (
    "os.replace", OSError(5, "Broken")), ("biases_on_disk.open", PermissionError(13, "Denied"))])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, name, error):
    (tmp_path / "b").write_text("old")
    monkeypatch.setattr(name, Mock(side_effect=error), raising=False)
    with pytest.raises(OSError, match=re.escape(f"{error.strerror}: {str(tmp_path / 'b')!r}")):
        save_biases(tmp_path / "b", biases)
    assert [p.name for p in tmp_path.iterdir()] == ["b"] and (tmp_path / "b").read_text() == "old"


@posix
def test_links_are_followed_modes_kept_and_what_is_no_file_or_not_ours_left_alone(tmp_path):
    link, b, part, pipe = paths = [tmp_path / name for name in ("link", "b", "b.part", "pipe")]
    link.symlink_to("b")
    part.write_text("mine")
    os.mkfifo(pipe)
    save_biases(link, biases)
    assert b.stat().st_mode == part.stat().st_mode
    b.chmod(0o600)
    with ThreadPoolExecutor(2) as savers:   # two at once leave no damaged file to a reader
        saved = savers.map(lambda _: save_biases(link, biases), range(20))
        assert all(bits(load_biases(b)) == bits(biases) for _ in saved)
    for path, attempt in product((pipe, tmp_path), (load_biases, lambda p: save_biases(p, biases))):
        with pytest.raises(OSError, match=f"{path} is not an ordinary file"):
            attempt(path)
    assert {*tmp_path.iterdir()} == {*paths} and b.stat().st_mode & 0o777 == 0o600
    assert link.is_symlink() and part.read_text() == "mine"
