r"""Which words of a report are denied: "no pleural effusion" speaks of an effusion that is *not* there.

Reports deny most of the findings that they name, and a word that is to point at a finding then has nothing to point
at. The rules are NegEx's (Chapman et al., J. Biomed. Inform. 2001) in their simplest form: a cue before a finding
denies what follows it, a cue after a finding denies what comes before it, and words such as "but" end what a cue
denies. What is only doubted ("cannot be excluded") is not denied, and neither is what has not changed. The cues were
adjusted on sentences of the phantom and of Open-i; other hospitals may deny in other words.
"""

import re
from collections.abc import Iterable
from itertools import pairwise

_BEFORE = re.compile(
    r"\b(?:no|not|without|neither|nor|never|negative for|free of|clear of|absence of|rules? out|resolution of)\b"
)
_AFTER = re.compile(
    r"\b(?:(?:is|are|was|were|has|have) (?:been )?(?:now )?(?:absent|excluded|ruled out|resolved|cleared)"
    r"|(?:not|no longer) (?:been )?(?:\w+ )?"
    r"(?:seen|present|identified|appreciated|evident|visible|visualized|detected|demonstrated|apparent|noted|found))\b"
)
_END = re.compile(r"\b(?:but|however|although|though|except)\b")
# Cues that deny no finding: a change, an exclusion, something about an earlier film.
_SPARED = re.compile(
    r"\b(?:no|not|without)(?: \w+){0,3}? (?:changes?|changed|increased?|decreased?|worsening|improvement)\b"
    r"|\b(?:cannot|can not|not)(?: \w+){0,2}? (?:excluded?|ruled? out)\b|\bnot (?:only|necessarily)\b"
    r"|\bnot \w+ on (?:the |any )?(?:prior|previous|earlier)\b"
)


def denied_words(sentence: str) -> list[bool]:
    """Tell of each word of a cleaned sentence whether it is denied.

    Normality ("the heart is normal in size") counts as a statement and not as a denial.

    Args:
        sentence: Lower-case words separated by spaces, as :func:`mgca_lib.data.reports.clean_sentences` gives them.

    Returns:
        One flag a word. The cue is denied with the rest.

    >>> denied_words("small effusion but no pneumothorax")
    [False, False, False, True, True]
    >>> denied_words("pneumothorax is not seen")
    [True, True, True, True]
    """
    starts = [0, *(match.start() for match in _END.finditer(sentence)), len(sentence)]
    return [flag for start, end in pairwise(starts) for flag in _denied_in_clause(sentence[start:end])]


def denied_in_report(sentences: Iterable[str]) -> list[bool]:
    """Return the flags of :func:`denied_words` for all sentences of a report, one after the other."""
    return [flag for sentence in sentences for flag in denied_words(sentence)]


def _denied_in_clause(clause: str) -> list[bool]:
    spared = [match.span() for match in _SPARED.finditer(clause)]

    def cues(pattern: re.Pattern[str]) -> list[tuple[int, int]]:
        found = [match.span() for match in pattern.finditer(clause)]
        return [one for one in found if not any(one[0] < end and start < one[1] for start, end in spared)]

    begin = min((start for start, _ in cues(_BEFORE)), default=len(clause))
    end = max((end for _, end in cues(_AFTER)), default=0)
    return [word.start() >= begin or word.end() <= end for word in re.finditer(r"\S+", clause)]
