"""The demonstration: the model built by hand, texts and words, and the command line."""

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import text_to_weights
from exact import assert_close, rngs
from iclca_ref import iclca
from linear_transformer import (Transformer, block, forward, generate, identity,
                                rope_frequencies)
from text_to_weights import (TEXT, Copies, announced, answer, fast_model, induction_transformer,
                             join_words, load_arrays, look_up_layer, main, previous_token_layer,
                             split_words)

ROOT = Path(__file__).parent.parent
texts = st.lists(st.integers(0, 4), min_size=1, max_size=40)


# ---- The model built by hand ---------------------------------------------------------------------

def counted(text, vocab_size, n_gram):
    """At every place of the text the votes for the next word: histories compared one by one."""
    votes = np.zeros((len(text), vocab_size))
    for i in range(len(text)):
        for j in range(i + 1):
            votes[i, text[j]] += sum(text[j - s] == text[i + 1 - s]
                                     for s in range(1, n_gram + 1) if j >= s)
    return votes


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
    copy, look_up = model.layers
    expected = counted(text, 5, 2)
    assert_close(forward(model, text)[0] + 1, expected + 1, ulps=1000)
    blurred = model._replace(layers=(copy._replace(theta=rope_frequencies(30)), look_up))
    assert abs(forward(blurred, text)[0] - expected).max() > 0.1


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
    copy, look_up = model.layers
    turned = model._replace(layers=(copy, look_up._replace(theta=rope_frequencies(10))))
    plain, blurred = (iclca(m, text)[1].kv for m in (model, turned))
    assert_close(plain + 1, np.rint(plain) + 1, ulps=1000)
    assert abs(blurred - np.rint(blurred)).max() > 0.01


@given(rngs, st.integers(1, 3), st.integers(1, 60))
def test_the_converted_model_continues_as_the_text_in_context_does(rng, n_gram, m):
    model, text = induction_transformer(9, m + 40, n_gram), rng.integers(0, 9, m + 10)
    _, converted = answer(model, text[m:], 30, iclca(model, text[:m]))
    assert converted == answer(model, text, 30)[1]


def test_a_text_is_continued_as_it_went_on_before():
    text = np.random.default_rng(0).permutation(30)
    continued = generate(induction_transformer(30, 50), [*text, *text[:2]], 10)
    np.testing.assert_array_equal(continued, text[2:12])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_model_has_the_slots_widths_and_types_that_its_description_says(dtype):
    model = induction_transformer(5, 20, dtype=dtype)
    assert model.embed.shape == (5, 5 * 4 + 1) and model.unembed.shape == (21, 5)
    assert model.max_length == 20
    copy, look_up = ([w.shape for w in layer] for layer in model.layers)
    assert copy == [(2, 21, 20), (2, 21, 20), (2, 21, 5), (2, 5, 21), (21, 0), (0, 21), (10,)]
    assert look_up == [(1, 21, 10), (1, 21, 10), (1, 21, 5), (1, 5, 21), (21, 0), (0, 21), (5,)]
    weights = model.embed, model.unembed, *model.layers[0], *model.layers[1]
    assert {w.dtype for w in weights} == {np.dtype(dtype)}
    slots = [slice(s, s + 2) for s in (2, 4, 6)]
    assert previous_token_layer(9, slice(0, 2), slots, 1).theta.shape == (2,)


def test_the_layers_work_on_any_slices_of_the_residual_stream():
    x = np.random.default_rng(0).integers(0, 5, (6, 10)).astype(float)
    x[:, -1] = 1
    bare = Transformer(None, (), None, phi=identity, normalize=False, norm=identity)
    copied, _ = block(x, previous_token_layer(10, slice(3, 5), [slice(5, 7), slice(7, 9)], 6), bare)
    expected = x.copy()
    expected[1:, 5:7] += x[:-1, 3:5]
    expected[2:, 7:9] += x[:-2, 3:5]
    np.testing.assert_allclose(copied, expected, atol=1e-12)
    look_up = look_up_layer(10, [slice(1, 3)], [slice(3, 5)], slice(5, 7), slice(7, 9))
    found, _ = block(x, look_up, bare)
    expected = x.copy()
    expected[:, 7:9] += np.tril(x[:, 1:3] @ x[:, 3:5].T) @ x[:, 5:7]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_an_odd_product_of_vocabulary_and_n_gram_is_padded():
    model = induction_transformer(3, 9, n_gram=1)
    assert model.layers[1].w_q.shape[-1] == 4
    np.testing.assert_array_equal(generate(model, [0, 1, 2, 0], 2), [1, 2])


def test_a_text_longer_than_the_model_was_built_for_and_sizes_below_one_are_refused():
    with pytest.raises(ValueError, match="5"):
        forward(induction_transformer(3, 5), [0] * 6)
    for sizes in (0, 5, 1), (5, 0, 1), (5, 5, 0):
        with pytest.raises(ValueError, match="at least 1"):
            induction_transformer(*sizes)


@given(texts, st.integers(1, 3))
def test_the_model_made_of_copies_is_the_model_to_the_bit(text, n_gram):
    slow, fast = (make(5, len(text) + 1, n_gram) for make in (induction_transformer, fast_model))
    (logits, biases), (fast_logits, fast_biases) = forward(slow, text), forward(fast, text)
    np.testing.assert_array_equal(fast_logits, logits)
    for fast_bias, bias in zip(fast_biases, biases):
        np.testing.assert_array_equal(fast_bias.kv, bias.kv)


def test_a_matrix_with_two_entries_in_a_column_is_not_made_of_copies():
    with pytest.raises(ValueError, match="more than one entry"):
        Copies(np.ones((1, 2, 1)))


# ---- Words ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("text, words", [
    ("Don't stop -- it's Ada-Lou's, isn't it?", "Don't|stop|--|it's|Ada-Lou's|,|isn't|it|?"),
    ("क्षि नमस्ते।", "क्षि|नमस्ते|।"),
    ("தமிழ் மொழி", "தமிழ்|மொழி"), ("می\u200cخواهم", "می\u200cخواهم"),
    ("e\u0301lan x\u0323\u0301y \u2764\ufe0f!", "élan|x\u0323\u0301y|\u2764\ufe0f|!"),
    ("a\x1b[2Jb\0", "a|[|2Jb")])
def test_words_keep_their_marks_and_lose_control_characters(text, words):
    assert list(split_words(text)) == words.split("|")


@given(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("a' -.\u0301\u200d")))
def test_words_joined_by_spaces_are_split_again_into_the_same_words(text):
    words = list(split_words(text))
    assert list(split_words(" ".join(words))) == words
    nothing_lost = re.sub(r"[\s\x00-\x1f\x7f-\x9f]", "", unicodedata.normalize("NFC", text))
    assert "".join(words) == nothing_lost


def test_joined_words_have_no_space_before_punctuation():
    assert join_words(["Don't", "stop", ",", "ever", "!"]) == "Don't stop, ever!"


# ---- The command line ----------------------------------------------------------------------------

def run(*arguments):
    """Exit code, output and errors of the command line, without what it says when it takes long."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(a) for a in arguments])
        except SystemExit as stop:
            code = stop.code
    return code, out.getvalue(), "".join(re.findall(r"^(?!\.\.\. ).*\n", err.getvalue(), re.M))


def answers(output, label):
    """What stands beside a label, once for every prompt."""
    found = re.findall(rf"^  {label}  (.*(?:\n {{30,}}.*)*)", output, re.M)
    return [" ".join(answer.split()) for answer in found]


CONVERTED, IN_CONTEXT = "converted, without the text", "with the text in context"


@pytest.fixture
def text_file(tmp_path):
    def write(text):
        path = tmp_path / "text.txt"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path
    return write


def test_the_default_run_shows_the_same_words_with_the_text_and_converted():
    code, output, errors = run()
    assert code == 0 and not errors and max(map(len, output.splitlines())) < 80
    prompts, in_context = answers(output, "prompt"), answers(output, IN_CONTEXT)
    assert prompts == ["Ada feeds", "clock strikes", "sails to"]
    assert in_context == answers(output, CONVERTED)
    assert answers(output, "without either") == ["(no idea: no word has a vote)"] * 3
    for prompt, answer in zip(prompts, in_context):
        assert len(list(split_words(answer))) == 6 and f"{prompt} {answer}".split()[2] in TEXT
    differences = answers(output, "largest difference of logits")
    assert len(differences) == 3 and all(float(d.split()[0]) < 1e-12 for d in differences)


def test_the_output_explains_its_words_and_what_it_is_not():
    _, output, _ = run("--prompt", "Ada")
    for word in "Algorithm 1", "bias", "b_KV", "logit":
        assert re.search(rf"^  {word} +\w.{{20,}}$", output, re.M)
    prose = " ".join(output.split())
    for claim in "not trained", "lookup that votes", "78 words of the", "no compression":
        assert claim in prose
    vocab_size = len(set(split_words(TEXT)))
    biases = iclca(induction_transformer(vocab_size, 78 + 64), [0] * 78)
    numbers = sum(a.size for bias in biases for a in bias)
    assert f"{numbers:,} numbers ({8 * numbers / 1e3:,.0f} kB)" in prose


def test_errors_should_never_pass_silently(text_file):
    zen = text_file("Beautiful is better than ugly.\nExplicit is better than implicit.\n"
                    "Errors should never pass silently.\nUnless explicitly silenced.\n")
    _, output, _ = run(zen, "--prompt", "Errors should", "--generate", 3)
    assert answers(output, CONVERTED) == ["never pass silently"]
    assert '\n  after "better"           comes "than" (2)\n' in output
    assert '\n  after "is" _             comes "than" (2)\n' in output


def test_the_table_is_the_counts_of_the_text(text_file):
    _, output, _ = run(text_file("a b a b a c"), "--n-gram", 1, "--prompt", "a")
    assert output.splitlines()[-2:] == ['  after "a"                comes "b" (2), "c" (1)',
                                        '  after "b"                comes "a" (2)']


def test_saved_and_loaded_without_the_text_the_answers_and_the_table_are_the_same(text_file):
    text = text_file("\ufeffÉlan vital, élan vital and élan once more. Plus नमस्ते")
    saved = text.with_name("b.npz")
    asked = ["--prompt", "élan", "--prompt", "and e\u0301lan", "--generate", 9]
    code, before, _ = run(text, *asked, "--n-gram", 3, "--save", saved)
    assert code == 0 and f"--load {saved} --prompt" in before
    text.unlink()
    code, after, _ = run("--load", saved, *asked)
    assert code == 0 and answers(after, CONVERTED) == answers(before, CONVERTED)
    assert len(answers(after, CONVERTED)) == 2 and not answers(after, IN_CONTEXT)
    assert after.split("What the context has become")[1].strip() in before
    assert load_arrays(saved)["sizes"].tolist() == [12, 12 + 64, 3]


def test_after_loading_context_and_prompt_stay_within_what_the_model_is_exact_for(tmp_path):
    saved, words = tmp_path / "b.npz", list(split_words(TEXT))
    assert run("--save", saved)[0] == 0
    number = {word: i for i, word in enumerate(dict.fromkeys(words))}
    for length in 1, 30, 63:
        prompt = (words * 2)[5:5 + length]
        code, output, _ = run("--load", saved, "--prompt", " ".join(prompt), "--generate", 1)
        votes = counted([number[word] for word in words + prompt], len(number), 2)[-1]
        assert code == 0 and answers(output, CONVERTED) == [list(number)[votes.argmax()]]
    code, _, errors = run("--load", saved, "--prompt", " ".join(prompt), "--generate", 2)
    assert code == 2 and "there is room for 64 words after the text" in errors
    assert run("--save", saved, "--prompt", "Ada " * 60, "--generate", 40)[0] == 0
    assert load_arrays(saved)["sizes"].tolist() == [78, 78 + 100, 2]


def test_the_default_prompts_are_three_places_of_the_text_or_as_many_as_it_has(text_file):
    _, output, _ = run(text_file(" ".join(f"w{i}" for i in range(24))), "--max-words", 20)
    assert answers(output, "prompt") == ["w0 w1", "w6 w7", "w13 w14"]
    assert "read the first 20 words (--max-words) of text.txt" in " ".join(output.split())
    code, output, _ = run(text_file("hello"))
    assert code == 0 and answers(output, "prompt") == ["hello"]
    assert "nothing has come after" in output
    assert answers(output, IN_CONTEXT) == ["hello hello hello hello hello hello"]


def test_nothing_to_generate_is_said(text_file):
    code, output, _ = run("--generate", 0)
    assert code == 0 and answers(output, CONVERTED) == ["(nothing, as --generate 0 asks for)"] * 3


def test_a_prompt_that_repeats_itself_goes_on_without_the_text_too():
    _, output, _ = run("--prompt", "Ada feeds Ada", "--generate", 2)
    assert answers(output, "without either") == ["feeds Ada"]


def test_long_words_stay_within_80_columns(text_file):
    a, b, c = "a" * 50, "b" * 45, "c" * 30
    code, output, _ = run(text_file(f"{a} {b} {a} {c} {b} {c} " * 2), "--n-gram", 3)
    assert code == 0 and max(map(len, output.splitlines())) < 80


def test_only_the_first_words_of_a_long_file_are_read(text_file):
    path = text_file(b"one two three " * 80_000 + b"\xff\0")
    assert "the first 10 words (--max-words)" in " ".join(run(path, "--max-words", 10)[1].split())
    path = text_file("a b c " * 3 + " " * 10**6 + "d")
    assert "the first 9 words" in " ".join(run(path)[1].split())


@pytest.mark.parametrize("content, message", [
    (None, "No such file"), (b"", "has no words"), (b" \n\t", "has no words"),
    (b"\xff\xfe\x00a", "is not a UTF-8 text"), (b"a\0b", "is not a text: it has null characters"),
    (b"a" * 1001, "has a word of over 1,000 letters")])
def test_a_file_that_is_no_text_gets_one_line_and_exit_code_2(text_file, content, message):
    path = text_file(content or b"")
    if content is None:
        path.unlink()
    code, output, errors = run(path)
    assert code == 2 and output == "" and errors.count("\n") == 1
    assert message in errors and "text.txt" in errors


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="has no /dev/zero")
def test_an_endless_file_is_refused():
    assert "/dev/zero is not a text: it has null characters\n" in run("/dev/zero")[2]
    assert "/dev/zero is not an ordinary file\n" in run("--load", "/dev/zero", "--prompt", "a")[2]


@pytest.mark.parametrize("arguments, message", [
    ("--prompt|Ada qqq", 'the text has no word "qqq"; close to it: none\n'),
    ("--prompt|ada", 'the text has no word "ada"; close to it: Ada, day, and\n'),
    ("--prompt|", "a prompt needs at least one word\n"),
    ("--save|no/such/folder/b.npz", "No such file"), ("--save|.", ". is not an ordinary file\n"),
    ("--load|no.npz|--prompt|a", "No such file"),
    (".", "denied" if sys.platform == "win32" else "directory"),
    ("--n-gram|1000000", "GB, and 2 are allowed"), ("--generate|1000000", "GB, and 2 are allowed"),
    ("--n-gram|0", "--n-gram: must be from 1 to 1,000,000, got 0\n"),
    ("--n-gram|x", "--n-gram: invalid"),
    ("--generate|-1", "must be from 0"), ("--max-words|0", "must be from 1"),
    ("--generate|1000001", "must be from 0"), ("--load|a|--save|b", "not allowed with"),
    ("", "a file needs a name\n"), ("--save|", "a file needs a name\n"),
    ("--load|", "a file needs a name\n"),
    ("file|--load|a", "--load answers without the text: leave FILE out\n"),
    ("--load|a", "--load needs a --prompt: the text is gone\n")])
def test_a_mistake_gets_a_line_in_words_and_exit_code_2(arguments, message):
    code, output, errors = run(*arguments.split("|"))
    assert code == 2 and output == "" and message in errors
    assert errors.splitlines()[-1].startswith("text_to_weights.py: ")
    assert errors.count("\n") == 1 or errors.startswith("usage: ")


def test_a_wrong_prompt_is_found_before_the_long_work(monkeypatch):
    monkeypatch.setattr(text_to_weights, "iclca", lambda *_: pytest.fail("has begun"))
    assert run("--prompt", "Ada", "--prompt", "qqq")[0] == 2


def test_load_refuses_what_save_has_not_written(tmp_path):
    path = tmp_path / "b.npz"
    assert run("--save", path)[0] == 0
    arrays = load_arrays(path)
    words, unwritten = arrays["words"], "b.npz was not written by --save\n"
    for name, wrong, message in [
            ("words", np.ones(3), unwritten), ("words", np.array("Ada"), unwritten),
            ("words", words[::-1].repeat(2), unwritten), ("words", np.array(["a b"]), unwritten),
            ("words", words[:0], unwritten), ("words", words[1:], "but the model's kv is"),
            ("sizes", np.array([9.0, 99, 2]), unwritten), ("sizes", np.array(2), unwritten),
            ("sizes", np.array([143, 142, 2]), unwritten),
            ("sizes", np.array([0, 142, 2]), unwritten),
            ("sizes", np.array([78, 142, 1]), "but the model's kv is"),
            ("sizes", np.array([78, 142, 0]), unwritten),
            ("sizes", np.array([78, 10**9, 2]), unwritten),
            ("kv_1", arrays["kv_1"] + 1000, unwritten),
            ("kv_1", arrays["kv_1"] * np.nan, "not finite\n")]:
        np.savez(path, **arrays | {name: wrong})
        code, _, errors = run("--load", path, "--prompt", "Ada")
        assert code == 2 and errors.count("\n") == 1, (name, wrong)
        assert message in errors and "b.npz" in errors, (name, wrong)


def test_help_explains_every_option():
    code, output, _ = run("--help")
    assert code == 0
    for option in ("FILE", "--prompt TEXT", "--generate N", "--n-gram K", "--max-words N",
                   "--save NPZ", "--load NPZ"):
        assert re.search(rf"^  {option}\s+\w", output, re.M)


def test_the_page_of_the_demonstration_shows_what_the_program_prints():
    def without_rounding(text):
        return re.sub(r"\d\.\de-\d\d", "0", text)

    page = (ROOT / "docs" / "demonstration.md").read_text("utf-8")
    assert without_rounding(run("--prompt", "Ada feeds")[1]).strip() in without_rounding(page)


words = st.sampled_from("Ada feeds the owl . qqq é \U0001f600 \ud800".split(" "))
numbers = st.integers(-2, 4).map(str) | st.sampled_from(["999999", "1e3", "", "9" * 5000])
argument_lists = st.lists(st.one_of(
    st.tuples(st.just("--prompt"), st.lists(words, max_size=4).map(" ".join)),
    st.tuples(st.sampled_from(["--generate", "--n-gram", "--max-words"]), numbers),
    st.tuples(st.sampled_from(["--save", "--load"]), st.sampled_from(["", "no/such", ".", "a\0b"])),
    st.tuples(st.text(max_size=3))), max_size=4)


@given(argument_lists)
def test_any_arguments_are_answered_or_refused_in_words(lists):
    code, output, errors = run(*(argument for one in lists for argument in one))
    assert code == 0 and output and not errors or code == 2 and errors


# ---- Where it runs -------------------------------------------------------------------------------

def test_what_takes_longer_than_a_second_is_announced(monkeypatch, capsys):
    log = []

    class Timer:
        def __init__(self, seconds, function):
            self.start, self.cancel = function, lambda: log.append("cancelled")
            log.append(seconds)

    monkeypatch.setattr(text_to_weights.threading, "Timer", Timer)
    with pytest.raises(KeyError), announced("counting"):
        raise KeyError
    assert capsys.readouterr().err == "... counting\n" and log == [1, "cancelled"]


def test_memory_that_is_not_there_is_said_in_a_line(monkeypatch):
    monkeypatch.setattr(text_to_weights, "iclca", lambda *_: np.empty(10**17))
    problem = "not enough memory: try a smaller --max-words or --n-gram"
    assert run() == (2, "", f"text_to_weights.py: {problem}\n")


def test_an_output_that_is_closed_or_was_never_there_needs_no_traceback(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", None)
    assert main([]) == 0
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stdout", closed)
    assert main([]) == 2 and capsys.readouterr().err.count("\n") == 1


def a_broken_pipe():
    read, write = os.pipe()
    os.close(read)
    return os.fdopen(write, "w")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs POSIX pipes and /dev/full")
@pytest.mark.parametrize("open_output, lines", [(a_broken_pipe, 0),
                                                (lambda: open("/dev/full", "w"), 1)])
def test_an_output_that_breaks_off_is_not_written_to_again(monkeypatch, capsys, open_output, lines):
    with open_output() as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert main([]) == 2
        print("this goes nowhere, and does not raise", flush=True)
    assert capsys.readouterr().err.count("\n") == lines


def script(*arguments):
    return [sys.executable, str(ROOT / "docs" / "text_to_weights.py"), *map(str, arguments)]


def test_the_script_survives_a_terminal_without_utf_8(text_file):
    done = subprocess.run(script(text_file("élan vital élan vital"), "--prompt", "vital"),
                          capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and b"?lan" in done.stdout


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a named pipe")
def test_an_interrupt_ends_the_script_without_a_traceback(tmp_path):
    os.mkfifo(tmp_path / "text")
    running = subprocess.Popen(script(tmp_path / "text"), stderr=subprocess.PIPE)
    with open(tmp_path / "text", "w"):         # opens when the script, past its imports, opens it
        running.send_signal(signal.SIGINT)
        assert running.communicate()[1] == b"" and running.returncode == -signal.SIGINT
