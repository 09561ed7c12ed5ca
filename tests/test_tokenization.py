"""Word pieces and word numbers against a greedy WordPiece written from its definition."""

import json
import subprocess
import sys

import numpy as np
import pytest
from helpers import small_tokenizer, word_pieces
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from mgca_lib.data.tokenization import (
    NO_WORD,
    SPECIAL_TOKENS,
    TokenizerError,
    load_tokenizer,
    tokenize_reports,
    train_tokenizer,
)

VOCABULARY = ["left", "##left", "in", "##fil", "##filtrate", "##tr", "##ate", "effusion", "a", "##b", "##c"]
VOCABULARY += ["no", "##rmal"]
REPORTS = [
    ["left", "infiltrate"],
    ["effusion", "leftleft", "inate", "normal"],
    ["abc", "abcb", "no"],
    ["zzz", "left", "leftz"],  # unknown words
    ["inleft"],
    [],
]


def reference(report, vocabulary, max_pieces):
    """Pieces and word numbers by the slow road."""
    pieces = [(piece, number) for number, word in enumerate(report) for piece in word_pieces(word, vocabulary)]
    kept = pieces[: max_pieces - 2]
    names = ["[CLS]", *(piece for piece, _ in kept), "[SEP]"]
    return names, [-1, *(number for _, number in kept), -1], len(kept) < len(pieces)


@pytest.mark.parametrize("max_pieces", [3, 4, 5, 6, 7, 8, 112])
def test_pieces_and_word_numbers(max_pieces):
    tokenizer = small_tokenizer(VOCABULARY)
    found = tokenize_reports(tokenizer, REPORTS, max_pieces=max_pieces)
    assert len(found) == len(REPORTS)
    for row, report in enumerate(REPORTS):
        pieces, words = found.report(row)
        expected_pieces, expected_words, cut = reference(report, VOCABULARY, max_pieces)
        assert tokenizer.convert_ids_to_tokens(pieces.tolist()) == expected_pieces
        assert words.tolist() == expected_words
        assert bool(found.truncated[row]) is cut
        assert len(pieces) <= max_pieces


def test_the_reference_itself():
    """Typed by hand: longest match first, not fewest pieces."""
    assert word_pieces("infiltrate", VOCABULARY) == ["in", "##filtrate"]
    assert word_pieces("infil", VOCABULARY) == ["in", "##fil"]
    assert word_pieces("leftz", VOCABULARY) == ["[UNK]"]


def test_a_cut_inside_a_word_is_flagged():
    found = tokenize_reports(small_tokenizer(VOCABULARY), [["left", "abcb"]], max_pieces=5)
    assert found.report(0)[1].tolist() == [-1, 0, 1, 1, -1]
    assert found.truncated.tolist() == [True]


def test_storage_is_end_to_end():
    found = tokenize_reports(small_tokenizer(VOCABULARY), REPORTS, max_pieces=112)
    lengths = [len(reference(report, VOCABULARY, 112)[0]) for report in REPORTS]
    assert found.offsets.tolist() == [0, *np.cumsum(lengths)]
    assert (found.pieces.dtype, found.words.dtype) == (np.int32, np.int16)
    assert len(found.pieces) == len(found.words) == sum(lengths)


def test_an_empty_report_keeps_its_frame():
    found = tokenize_reports(small_tokenizer(VOCABULARY), [[]], max_pieces=112)
    assert found.report(0)[0].tolist() == [2, 3]
    assert found.report(0)[1].tolist() == [NO_WORD, NO_WORD]
    assert not found.truncated[0]


def test_more_reports_than_one_chunk():
    tokenizer = small_tokenizer(VOCABULARY)
    reports = [REPORTS[number % len(REPORTS)] for number in range(4100)]
    found = tokenize_reports(tokenizer, reports, max_pieces=6)
    for row in (0, 4095, 4096, 4099):
        alone = tokenize_reports(tokenizer, [reports[row]], max_pieces=6)
        np.testing.assert_array_equal(found.report(row)[0], alone.report(0)[0])
        np.testing.assert_array_equal(found.report(row)[1], alone.report(0)[1])
        assert found.truncated[row] == alone.truncated[0]


CORPUS = [
    "small left pleural effusion with adjacent atelectasis",
    "no acute cardiopulmonary process",
    "right lower lobe consolidation concerning for pneumonia",
    "mild pulmonary edema and cardiomegaly",
    "no pneumothorax or effusion",
] * 3


def test_a_trained_tokenizer_cuts_greedily():
    tokenizer = train_tokenizer(CORPUS, vocabulary=90)
    vocabulary = list(tokenizer.get_vocab())
    assert len(vocabulary) <= 90
    assert [tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
    reports = [text.split() for text in (*CORPUS[:5], "pneumatic effusions", "unknown2 left")]
    found = tokenize_reports(tokenizer, reports, max_pieces=112)
    for row, report in enumerate(reports):
        expected_pieces, expected_words, _ = reference(report, vocabulary, 112)
        assert tokenizer.convert_ids_to_tokens(found.report(row)[0].tolist()) == expected_pieces
        assert found.report(row)[1].tolist() == expected_words


def test_letters_that_were_never_seen_are_unknown():
    tokenizer = train_tokenizer(CORPUS, vocabulary=90)
    assert tokenizer.convert_ids_to_tokens(tokenizer("effusion 7 LEFT").input_ids) == [
        "[CLS]",
        *word_pieces("effusion", list(tokenizer.get_vocab())),
        "[UNK]",
        *word_pieces("left", list(tokenizer.get_vocab())),
        "[SEP]",
    ]


def test_the_vocabulary_is_deterministic(tmp_path):
    """Another process has another hash seed, and must find the same ids; so must another order of the reports."""
    script = (
        "import json, sys; from mgca_lib.data.tokenization import train_tokenizer\n"
        "corpus = json.load(open(sys.argv[1]))\n"
        "print(json.dumps(train_tokenizer(corpus, vocabulary=140).get_vocab(), sort_keys=True))"
    )
    corpus = tmp_path / "corpus.json"
    corpus.write_text(json.dumps(CORPUS))
    run = subprocess.run([sys.executable, "-c", script, str(corpus)], capture_output=True, text=True, check=True)
    here = train_tokenizer(reversed(CORPUS), vocabulary=140).get_vocab()
    assert json.loads(run.stdout) == here
    assert len(here) > 100


def test_saved_and_loaded(tmp_path):
    tokenizer = train_tokenizer(CORPUS, vocabulary=90)
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert (again.pad_token_id, again.cls_token_id, again.sep_token_id) == (0, 2, 3)
    reports = [text.split() for text in CORPUS[:5]]
    one, two = (tokenize_reports(each, reports, max_pieces=9) for each in (tokenizer, again))
    np.testing.assert_array_equal(one.pieces, two.pieces)
    np.testing.assert_array_equal(one.words, two.words)


@pytest.mark.parametrize("source", ["emilyalsentzer/Bio_ClinicalBERT", "no/such folder"])
def test_a_hub_id_without_network_says_what_to_do(source):
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(source)
    message = str(caught.value)
    assert message.startswith(f"tokenizer {source!r}: ")
    assert f"hf download {source}" in message
    assert "set text_model to that folder" in message
    assert "\n" not in message


def test_a_folder_without_a_tokenizer(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(TokenizerError, match="holds nothing that can be read"):
        load_tokenizer(tmp_path)
    with pytest.raises(TokenizerError, match=r"nowhere': no such folder; put the tokenizer there"):
        load_tokenizer(tmp_path / "nowhere")


def test_word_numbers_need_a_fast_tokenizer(monkeypatch):
    class Slow:
        is_fast = False

    monkeypatch.setattr("mgca_lib.data.tokenization.AutoTokenizer.from_pretrained", lambda source, **_: Slow())
    with pytest.raises(TokenizerError, match="has no fast version"):
        load_tokenizer("somewhere")


def test_words_with_marks_inside_stay_one_word():
    core = Tokenizer(models.WordPiece({"[UNK]": 0, "x": 1, "-": 2, "ray": 3}, unk_token="[UNK]"))
    core.pre_tokenizer = small_tokenizer([]).backend_tokenizer.pre_tokenizer
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]")
    found = tokenize_reports(tokenizer, [["x-ray", "ray"]], max_pieces=9)
    assert found.report(0)[0].tolist() == [1, 2, 3, 3]
    assert found.report(0)[1].tolist() == [0, 0, 0, 1]


def test_reports_as_text_are_split_at_spaces():
    tokenizer = small_tokenizer(VOCABULARY)
    split, whole = (
        tokenize_reports(tokenizer, reports, max_pieces=9) for reports in (REPORTS, [" ".join(r) for r in REPORTS])
    )
    for name in ("pieces", "words", "offsets", "truncated"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(split, name))
