"""Reports to word pieces, with the word that every piece belongs to.

Reports arrive as cleaned words (:mod:`mgca_lib.data.reports`). A tokenizer cuts words into pieces; the number of
the word is kept beside each piece, so that the encoder can merge pieces to words on the device in one scatter-add.
"""

# isort: off
import mgca_lib.torchvision_operators  # noqa: F401 - first: repairs a torchvision built for another torch

# isort: on
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mgca_lib.messages import first_line, local_fault

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
NO_WORD = -1


class TokenizerError(ValueError):
    """A tokenizer cannot be had or cannot be used; the message says what to do."""


@dataclass(frozen=True)
class TokenizedReports:
    """All reports of a dataset as word pieces, stored end to end (memory is proportional to their text).

    Attributes:
        pieces: ``(total,)`` int32, vocabulary ids, [CLS] and [SEP] included.
        words: ``(total,)`` int16, number of the word within its report; -1 for [CLS] and [SEP].
        offsets: ``(N + 1,)`` int64; report ``i`` is ``offsets[i]:offsets[i + 1]``.
        truncated: ``(N,)`` bool, ``True`` where pieces were cut off at the end.
    """

    pieces: np.ndarray
    words: np.ndarray
    offsets: np.ndarray
    truncated: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def report(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Return pieces and word numbers of one report."""
        part = slice(self.offsets[row], self.offsets[row + 1])
        return self.pieces[part], self.words[part]


def train_tokenizer(reports: Iterable[str], *, vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a lower-case WordPiece tokenizer, so that nothing need be downloaded.

    The same reports give the same ids in every process, whatever their order.

    Args:
        reports: Cleaned reports, words separated by spaces.
        vocabulary: Largest size of the vocabulary, special tokens and single letters included.

    Returns:
        A tokenizer that ``save_pretrained`` writes and :func:`load_tokenizer` reads.

    >>> tokenizer = train_tokenizer(["small left pleural effusion"] * 5, vocabulary=60)
    >>> tokenizer.convert_ids_to_tokens(tokenizer("left effusion").input_ids)
    ['[CLS]', 'left', 'effusion', '[SEP]']
    """
    normalizer, pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    reports = [normalizer.normalize_str(report) for report in reports]
    # The trainer numbers letters inside words as its randomly seeded hash table yields them, and ties between
    # pieces follow the numbers. Listed as special tokens, they get their numbers here; they are special to the
    # trainer only.
    letters = sorted({letter for report in reports for word in report.split() for letter in word[1:]})
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary,
        special_tokens=[*SPECIAL_TOKENS, *(f"##{letter}" for letter in letters)],
        show_progress=False,
        min_frequency=2,
    )
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.pre_tokenizer = pre_tokenizer
    trained.train_from_iterator(reports, trainer)
    core = Tokenizer(models.WordPiece(trained.get_vocab(), unk_token="[UNK]"))
    core.normalizer, core.pre_tokenizer = normalizer, pre_tokenizer
    core.add_special_tokens(list(SPECIAL_TOKENS))
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(token, core.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL_TOKENS, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=core, **names)


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a folder or a hub id.

    Raises:
        TokenizerError: it is not on this computer and the hub cannot be reached, or it has no fast version.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(source), trust_remote_code=False)
    except (OSError, ValueError) as error:
        if local := local_fault(str(source), error):
            raise TokenizerError(
                f"tokenizer {str(source)!r}: {local}; put the tokenizer there, or name a hub id"
            ) from None
        raise TokenizerError(
            f"tokenizer {str(source)!r}: not a folder with a tokenizer, and the hub did not give it "
            f"({first_line(error)}). Download it on a computer with network "
            f"(hf download {source} --local-dir models/text) and set text_model to that folder"
        ) from None
    if not tokenizer.is_fast:
        raise TokenizerError(f"tokenizer {str(source)!r}: has no fast version, which the word numbers need")
    return tokenizer


def tokenize_reports(
    tokenizer: PreTrainedTokenizerBase, reports: Sequence[str | Sequence[str]], *, max_pieces: int
) -> TokenizedReports:
    """Cut reports into word pieces and number the words.

    The first word has number 0. Like upstream, long reports lose their end; unlike upstream, the last word that
    fits is kept and the number of cut reports is known.

    Args:
        tokenizer: A fast BERT-type tokenizer.
        reports: Words of each report, or each report with its words separated by spaces, which takes less memory.
        max_pieces: Longest result, [CLS] and [SEP] included.

    Returns:
        Pieces and word numbers of all reports.
    """
    pieces, words, lengths, truncated = [], [], [], []
    for start in range(0, len(reports), 256):  # what a chunk needs besides its result stays with the process
        chunk = reports[start : start + 256]
        split = [report.split() if isinstance(report, str) else list(report) for report in chunk]
        chunk_pieces, chunk_words = [], []
        encoded = tokenizer(
            split,
            is_split_into_words=True,
            truncation=True,
            max_length=max_pieces,
            return_overflowing_tokens=False,
        )
        for index, ids in enumerate(encoded.input_ids):
            numbers = [NO_WORD if number is None else number for number in encoded.word_ids(index)]
            chunk_pieces += ids
            chunk_words += numbers
            lengths.append(len(ids))
            last = max(numbers, default=NO_WORD)
            truncated.append(last + 1 < len(split[index]) or len(encoded.encodings[index].overflowing) > 0)
        pieces.append(np.array(chunk_pieces, dtype=np.int32))
        words.append(np.array(chunk_words, dtype=np.int16))
    return TokenizedReports(
        pieces=np.concatenate(pieces),
        words=np.concatenate(words),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        truncated=np.array(truncated),
    )
