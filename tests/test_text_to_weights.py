"""The demonstration: the model built by hand, words, the command line, biases in files."""

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import unicodedata
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given, strategies as st

import biases_on_disk
import text_to_weights
from exact import assert_close, fractions, rngs
from iclca_ref import iclca
from linear_transformer import Bias, forward, generate, random_transformer, rope_frequencies
from text_to_weights import TEXT, induction_transformer, load, load_biases, save_biases, split_words

SCRIPT = Path(__file__).parent.parent / "docs" / "text_to_weights.py"
kinds = dict(vocab_size=10, d_model=8, n_layers=2, n_heads=2, dtype=np.float32)
model = random_transformer(np.random.default_rng(0), **kinds)
biases = iclca(model, [1, 2, 3])
one, two, nan = np.ones((2, 3)), np.ones(2), np.full(2, np.nan)
texts = st.lists(st.integers(0, 4), min_size=1, max_size=40)
posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX files and signals")


# ---- The model built by hand ---------------------------------------------------------------------

def counted(text, vocab_size, n_gram):
    """At every place of the text the logits: histories compared one by one, less the tie rule."""
    votes = np.zeros((len(text), vocab_size))
    for i in range(len(text)):
        for j in range(i + 1):
            votes[i, text[j]] += sum(text[j - s] == text[i + 1 - s]
                                     for s in range(1, n_gram + 1) if j >= s)
    return votes - np.arange(vocab_size) / (4 * vocab_size)


@pytest.mark.proves("induction by hand", "Table 2")
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@given(texts, st.integers(1, 4), st.integers(0, 3))
def test_the_logits_count_how_far_the_histories_agree(dtype, text, n_gram, room):
    logits, _ = forward(induction_transformer(5, len(text) + room, n_gram, dtype), text)
    assert_close(logits + 1, (counted(text, 5, n_gram) + 1).astype(dtype), ulps=40 * len(text))


@pytest.mark.breaks("induction by hand", "RoFormer's frequencies in the first layer")
@given(rngs)
def test_with_other_frequencies_the_heads_do_not_look_back_one_token(rng):
    text, model = rng.integers(0, 5, 30), induction_transformer(5, 30)
    assert_close(forward(model, text)[0] + 1, counted(text, 5, 2) + 1, ulps=1000)
    other = model.layers[0]._replace(theta=rope_frequencies(30)), model.layers[1]
    blurred, _ = forward(model._replace(layers=other), text)
    assert abs(blurred - counted(text, 5, 2)).max() > 0.1


@pytest.mark.breaks("induction by hand", "a context and a prompt over max_length together")
@given(rngs)
def test_a_context_and_a_prompt_that_are_too_long_together_are_counted_wrongly(rng):
    text = np.concatenate([rng.integers(1, 5, 20), [0], rng.integers(1, 5, 19), [1]])
    short, long = (forward(model, text[20:], iclca(model, text[:20]))[0]
                   for model in (induction_transformer(5, 21), induction_transformer(5, 41)))
    assert_close(long + 1, counted(text, 5, 2)[20:] + 1, ulps=2000)
    assert abs(short - long).max() > 0.1


@pytest.mark.proves("b_KV is the table of what followed what", "ours")
@given(texts, st.integers(1, 3))
def test_the_last_layers_b_kv_is_the_table_of_what_came_after_what(text, n_gram):
    table = np.zeros((n_gram, 5, 5))
    for s in range(1, n_gram + 1):
        np.add.at(table[s - 1], (text[:-s], text[s:]), 1)
    b_kv = iclca(induction_transformer(5, len(text), n_gram), text)[1].kv[0]
    assert_close(b_kv[:5 * n_gram] + 1, table.reshape(-1, 5) + 1, ulps=40 * len(text))


@pytest.mark.breaks("b_KV is the table of what followed what",
                    "RoFormer's frequencies in the second layer")
@given(rngs)
def test_with_positions_in_the_second_layer_its_b_kv_is_no_table_of_counts(rng):
    text, model = rng.integers(0, 5, 30), induction_transformer(5, 30)
    other = model.layers[0], model.layers[1]._replace(theta=rope_frequencies(10))
    plain, blurred = (iclca(m, text)[1].kv for m in (model, model._replace(layers=other)))
    assert_close(plain + 1, np.rint(plain) + 1, ulps=1000)
    assert abs(blurred - np.rint(blurred)).max() > 0.01


@given(rngs, st.sampled_from([np.float64, np.float32]), st.integers(1, 3), st.integers(1, 40))
def test_of_equal_votes_the_first_token_wins_in_context_and_converted(rng, dtype, n_gram, m):
    model, text = induction_transformer(9, m + 20, n_gram, dtype), rng.integers(0, 9, m + 10)
    expected = list(text)
    for _ in range(5):
        expected.append(int(np.rint(counted(expected, 9, n_gram)[-1]).argmax()))
    for found in generate(model, text, 5), generate(model, text[m:], 5, iclca(model, text[:m])):
        assert found.tolist() == expected[m + 10:]


@pytest.mark.parametrize("sizes", [(0, 5, 1), (5, 0, 1), (5, 5, 0)])
def test_sizes_below_one_are_refused(sizes):
    with pytest.raises(ValueError, match="at least 1"):
        induction_transformer(*sizes)


# ---- Words and the command line ------------------------------------------------------------------

@pytest.mark.parametrize("text, words", [
    ("Don't stop -- it's Ada-Lou's, isn't it?", "Don't|stop|--|it's|Ada-Lou's|,|isn't|it|?"),
    ("क्षि नमस्ते। தமிழ் மொழி می\u200cخواهم", "क्षि|नमस्ते|।|தமிழ்|மொழி|می\u200cخواهم"),
    ("e\u0301lan x\u0323\u0301 \u2764\ufe0f a\x1b[2\0", "élan|x\u0323\u0301|\u2764\ufe0f|a|[|2")])
def test_words_keep_their_marks_and_lose_control_characters(text, words):
    assert split_words(text) == words.split("|")


@given(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("a' -.\u0301\u200d")))
def test_words_joined_by_spaces_are_split_again_into_the_same_words(text):
    assert split_words(" ".join(words := split_words(text))) == words
    nothing_lost = re.sub(r"[\s\x00-\x1f\x7f-\x9f]", "", unicodedata.normalize("NFC", text))
    assert "".join(words) == nothing_lost


def run(*arguments):  # exit code, output and errors
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = text_to_weights.main([str(a) for a in arguments])
        except SystemExit as stop:
            code = stop.code
    return code, out.getvalue(), err.getvalue()


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
     ["  prompt                        w6 w7", "  prompt                        w13 w14",
      "read the first 20 words (--max-words) of text.txt"]),
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


def test_saved_and_loaded_without_the_text_the_answers_and_the_table_are_the_same(tmp_path):
    text = write(tmp_path, "\ufeffÉlan vital, élan vital and élan once more. Plus नमस्ते")
    asked = ["--prompt", "élan", "--prompt", "and e\u0301lan", "--generate", 9]
    code, before, _ = run(text, *asked, "--n-gram", 3, "--save", saved := tmp_path / "b.npz")
    assert code == 0 and f"--load {saved} --prompt" in before
    os.link(text, tmp_path / "same")
    assert "--save would overwrite FILE" in run(text, "--save", tmp_path / "same")[2]
    code, after, _ = run("--load", saved, *asked)
    assert code == 0 and answers(after) == answers(before) and "in context" not in after
    assert after.split("What the context has become")[1].strip() in before


def test_after_loading_context_and_prompt_stay_within_what_the_model_is_exact_for(tmp_path):
    assert run("--save", tmp_path / "b", "--prompt", "Ada " * 60, "--generate", 10)[0] == 0
    names = list(dict.fromkeys(words := split_words(TEXT)))
    asked = "--load", tmp_path / "b", "--prompt", " ".join((words * 2)[5:74]), "--generate"
    logits = counted([names.index(word) for word in words + (words * 2)[5:74]], len(names), 2)[-1]
    assert answers(run(*asked, 1)[1]) == [names[logits.argmax()]]
    assert "there is room for 70 words after the text\n" in run(*asked, 2)[2]


@pytest.mark.parametrize("changes", [
    dict(words=one), dict(words=np.array("Ada")), dict(words=np.array(["a b"])), dict(d_0=nan),
    dict(words=two[:0]), dict(words=np.array([*"aab"])), dict(words=np.array(["a"])),
    dict(length=np.array(0)), dict(length=two), dict(kv_0=two), dict(kv_0=np.ones((10**5, 1, 1)))])
def test_load_refuses_what_save_has_not_written(tmp_path, changes):
    path = (text := write(tmp_path, "a b a c")).with_name("b.npz")
    assert run(text, "--save", path)[0] == run("--load", path, "--prompt", "a")[0] == 0
    np.savez(path, **load(path, dict) | changes)
    code, output, errors = run("--load", path, "--prompt", "a")
    assert (code, output, errors.count("\n")) == (2, "", 1) and "b.npz is not a file" in errors


@pytest.mark.parametrize("content", [b" \n\t", b"\xff\xfe\x00a", b"a\xe9", b"a\0b", b"a" * 1001])
def test_a_file_that_is_no_text_gets_one_line_and_exit_code_2(tmp_path, content):
    code, output, errors = run(path := write(tmp_path, content))
    assert (code, output, errors.count("\n")) == (2, "", 1) and f"{path} is no UTF-8" in errors


@pytest.mark.parametrize("arguments, message", [
    ("no.txt", "No such file"), (".", "denied|directory"), ("--prompt|--", "expected one argument"),
    ("--prompt|Ada qqq", 'the text has no word "qqq"; close to it: none\n'),
    ("--prompt|ada", 'the text has no word "ada"; close to it: Ada, day, and\n'),
    ("--prompt|", "a prompt needs at least one word\n"), ("--prompt=--|t", "cannot be --|No such"),
    ("--save|.", ". is not an ordinary file\n"), ("--save|no/b", "No such file.*no.b"),
    ("--load|no|--prompt|a", "No such file"), ("--n-gram|1000000", "GB, and 2 are allowed"),
    ("--n-gram|0", "from 1 to 1,000,000\n"), ("--generate|-1", "must be from 0 to"),
    ("", "a file needs a name\n"), ("--load|a", "--load needs a --prompt: the text is gone"),
    ("--load|a|--save|b", "not allowed"), ("file|--load|a", "--load answers without the text")])
def test_a_mistake_gets_a_line_in_words_and_exit_code_2(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, output, errors = run(*arguments.split("|"))
    assert code == 2 and re.search(message, errors) and output == "" and not os.listdir(tmp_path)
    assert errors.splitlines()[-1].startswith("text_to_weights.py: ")
    assert errors.count("\n") == 1 or errors.startswith("usage: ")


words = ("--generate --n-gram --max-words --prompt --prompt=-- --load --save=no/such --save=. -2 0 "
         "3 999999 1e3 -- no/such . a\0b Ada qqq é \ud800  " + "9" * 5000).split(" ")


@given(st.lists(st.sampled_from(words) | st.text(max_size=2), max_size=5))
def test_any_arguments_are_answered_or_refused_in_words(arguments):
    code, output, errors = run(*arguments)
    assert code == 0 and output and not errors or code == 2 and errors


def test_long_work_is_announced_after_the_prompts_were_read(monkeypatch, tmp_path):
    monkeypatch.setattr(text_to_weights, "iclca", Mock(side_effect=MemoryError))
    assert run() == (2, "", "text_to_weights.py: not enough memory\n")
    assert run(write(tmp_path, "a " * 501))[2].startswith("... reading 501 words of text.txt, 1 ")
    assert "no word" in run("--prompt", "Ada", "--prompt", "qqq")[2]


@posix
@pytest.mark.parametrize("command, code, errors", [
    ("$0 | true", 141, b""), ("$0 --help | true", 141, b""), ("$0 >&-", 0, b""),
    ("PYTHONIOENCODING=ascii $0", 0, b"")] + [("$0 > /dev/full", 2, b"No space left on device\n")]
    * os.path.exists("/dev/full"))
def test_an_output_that_breaks_off_or_lacks_letters_needs_no_traceback(command, code, errors):
    command = "set -o pipefail; " + command.replace("$0", f"'{sys.executable}' '{SCRIPT}'")
    done = subprocess.run(["bash", "-c", command], capture_output=True)
    assert done.returncode == code and done.stdout.isascii()
    assert re.fullmatch(b"(text_to_weights.py: .*)?" + errors, done.stderr)


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_script_quietly_and_nothing_half_written_stays(tmp_path, number):
    (tmp_path / "b").write_text("old")
    code = (f"import os, runpy, sys, numpy; sys.path[0] = {str(SCRIPT.parent)!r}; del sys.argv[0]; "
            f"numpy.savez = lambda *_, **__: os.kill(os.getpid(), {number:d}); "
            "runpy.run_path(sys.argv[0], run_name='__main__')")
    done = subprocess.run([sys.executable, "-c", code, SCRIPT, "--save", tmp_path / "b"],
                          capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, b"", b"")
    assert [p.name for p in tmp_path.iterdir()] == ["b"] and (tmp_path / "b").read_text() == "old"


# ---- Biases in files -----------------------------------------------------------------------------

def bits(biases):
    return [(a.dtype, a.shape, a.tobytes()) for arrays in biases for a in arrays]


@pytest.mark.parametrize("saved", [biases, [Bias(one[:, :0], two)], [
    Bias(np.full((5, 4, 2, 3), i, float), np.full((5, 4, 2), -i, float)) for i in range(12)]])
def test_saved_biases_come_back_the_same_to_the_bit(tmp_path, saved):
    save_biases(tmp_path / "b", saved, words=["a", "é"])
    assert bits(load_biases(tmp_path / "b", model if saved is biases else None)) == bits(saved)
    assert load(tmp_path / "b", dict)["words"].tolist() == ["a", "é"]
    np.savez(tmp_path / "b.npz", kv_0=one.T, d_0=one[0])  # what NumPy itself has saved
    assert bits(load_biases(tmp_path / "b.npz")) == bits([Bias(one.T, one[0])])


@pytest.mark.parametrize("changes", [dict(n_layers=1), dict(n_layers=3), dict(n_heads=1),
                                     dict(d_model=16), dict(dtype=np.float64)])
def test_biases_of_another_model_are_refused(tmp_path, changes):
    save_biases(tmp_path / "b", biases)
    with pytest.raises(ValueError, match="b is not .*: (layer 0 has .* the model's|. layers need)"):
        load_biases(tmp_path / "b", random_transformer(np.random.default_rng(0), **kinds | changes))


@pytest.mark.parametrize("saved, more", [
    ([], {}), (None, {}), ([None], {}), ([(one,)], {}), (Bias(one, two), {}), (biases[0], {}),
    ([Bias(one, one[0])], {}), ([Bias(two, one[0, 0])], {}), ([Bias(one * np.inf, two)], {}),
    ([Bias(one, nan)], {}), ([Bias(one, np.float32(two))], {}), ([Bias(one > 0, two > 0)], {}),
    ([Bias(np.float16(one), np.float16(two))], {}), ([Bias(one.astype(int), two.astype(int))], {}),
    ([Bias(fractions([[1]]), fractions([1]))], {}), (biases, {"words": np.array([None])}),
    (biases, {"kv_0": biases[1].kv}), (biases, {"d_7": two}), (biases, {"a" * 70_000: two}),
    (biases, {"a/b.npy": two}), (biases, {"allow_pickle": two}), (biases, {"file": two})])
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
    (b"no zip at all", "not a zip"), (b"", "not a zip"), (npy(), "not a zip"),
    (zipped(b"junk"), "magic"), (zipped(b""), "magic|EOF"), (zipped(npy()[:12]), "EOF"),
    (zipped(npy(descr="|O")), "Object arrays"), (zipped(npy(shape="((((")), ""),
    (zipped(npy(shape=(10**12,))), ""), (zipped(npy(shape=(10**30, 0))), ""),
    (zipped(npy(shape=(10**12,), descr="<U0")), "larger|llocate"), (zipped(npy(shape=(-1, 2))), ""),
    (zipped(npy(), npy(), names=("kv_0.npy", "kv_0")), "damaged"),
    (zipped(bytes(10**6), method=zipfile.ZIP_DEFLATED), "compressed"),
    (zipped(npy(one), npy()).replace(b"(2,", b"(0,"), "damaged"), (zipped(), "layers need"),
    (zipped(npy(one)), "layers need"), (zipped(npy(one), npy(), names=("kv_1", "d_1")), "need"),
    (zipped(npy(one), npy(one[0])), "no Bias"), (zipped(npy(one), npy(nan)), "not finite")])
def test_what_is_no_npz_or_says_wrong_things_of_itself_is_refused(tmp_path, content, why):
    (tmp_path / "b").write_bytes(content)
    with pytest.raises(ValueError, match=f"b is not a file of such biases: .*({why})"):
        load_biases(tmp_path / "b")


@given(st.lists(st.floats(0, 1, exclude_max=True), max_size=2), st.binary(max_size=9),
       st.lists(st.integers(0, 10**6), max_size=3))
def test_a_damaged_file_is_refused_or_nothing_in_it_has_changed(tmp_path_factory, cut, new, flips):
    path = tmp_path_factory.getbasetemp() / "b.npz"
    save_biases(path, biases, words=["Ada", "feeds"])
    before, data = bits([(arrays := load(path, dict)).values()]), bytearray(path.read_bytes())
    for flip in flips:
        data[flip // 8 % len(data)] ^= 1 << flip % 8
    start, end = [int(place * len(data)) for place in cut] if cut[1:] else (len(data), len(data))
    path.write_bytes(data[:start] + new + data[end:])
    with contextlib.suppress(ValueError):
        assert [*(loaded := load(path, dict))] == [*arrays] and bits([loaded.values()]) == before


@pytest.mark.parametrize("module, name, error", [
    (np, "savez", OSError(28, "No space left")), (np, "savez", KeyboardInterrupt()),
    (biases_on_disk, "open", PermissionError(13, "Denied")), (os, "replace", OSError(5, "Broken"))])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, module, name, error):
    (tmp_path / "b").write_text("old")
    monkeypatch.setattr(module, name, Mock(side_effect=error), raising=False)
    with pytest.raises(type(error)) as raised:
        save_biases(tmp_path / "b", biases)
    assert raised.type is KeyboardInterrupt or raised.value.filename == str(tmp_path / "b")
    assert [p.name for p in tmp_path.iterdir()] == ["b"] and (tmp_path / "b").read_text() == "old"


@posix
def test_links_are_followed_modes_kept_and_what_is_no_file_or_not_ours_left_alone(tmp_path):
    (tmp_path / "link").symlink_to("b")
    (tmp_path / "b.part").write_text("mine")
    os.mkfifo(tmp_path / "pipe")
    save_biases(tmp_path / "link", biases)
    assert (tmp_path / "b").stat().st_mode == (tmp_path / "b.part").stat().st_mode
    (tmp_path / "b").chmod(0o600)
    save_biases(tmp_path / "link", biases)
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o600
    for path in tmp_path / "pipe", tmp_path:
        for attempt in load_biases, lambda path: save_biases(path, biases):
            with pytest.raises(OSError, match=f"{path} is not an ordinary file"):
                attempt(path)
    assert {p.name for p in tmp_path.iterdir()} == {"link", "b", "b.part", "pipe"}
    assert (tmp_path / "link").is_symlink() and (tmp_path / "b.part").read_text() == "mine"


def test_two_savers_at_once_leave_no_damaged_file_to_a_reader(tmp_path):
    with ThreadPoolExecutor(2) as savers:
        save_biases(tmp_path / "b", biases)
        for saved in [savers.submit(save_biases, tmp_path / "b", biases) for _ in range(20)]:
            assert bits(load_biases(tmp_path / "b")) == bits(biases)
            saved.result()
    assert [p.name for p in tmp_path.iterdir()] == ["b"]
