"""Word error rates, and their comparison between two runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jiwer
import numpy as np

from calib import figures
from fileio.atomic import write_text
from fileio.messages import printable
from tasks.files import read_text

PREDICTIONS, REFERENCES = "predictions.txt", "references.txt"
MARKED = 0.1  # differences of an utterance's word error rate above it are marked
_BINS = np.linspace(-1.0, 1.0, 41)  # 0.05 wide


def normalizer(language: str) -> Callable[[str], str]:
    """Return Whisper's text normalizer: lower case, no punctuation, one spelling of numbers.

    Args:
        language: English has spellings and contractions of its own.
    """
    from whisper_normalizer.basic import BasicTextNormalizer
    from whisper_normalizer.english import EnglishTextNormalizer

    return EnglishTextNormalizer() if language == "en" else BasicTextNormalizer()


class WordErrors(NamedTuple):
    """Word errors of one utterance.

    Attributes:
        errors: substitutions, deletions and insertions.
        words: of the reference.
    """

    errors: int
    words: int

    @property
    def rate(self) -> float:
        """Word error rate; of a reference without words the number of errors."""
        return self.errors / max(1, self.words)


def word_errors(reference: str, hypothesis: str) -> WordErrors:
    """Count the word errors of one utterance, both texts normalised."""
    result = jiwer.process_words([reference], [hypothesis])
    errors = result.substitutions + result.deletions + result.insertions
    return WordErrors(errors, result.hits + result.substitutions + result.deletions)


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Return the word error rate of a corpus in percent, all errors over all words."""
    if not any(references):
        raise ValueError("no reference has a word: there is no word error rate")
    return 100.0 * float(jiwer.wer(list(references), list(hypotheses)))


def write_texts(folder: str, references: Sequence[str], hypotheses: Sequence[str]) -> None:
    """Write normalised references and hypotheses, one utterance a line."""
    for name, texts in ((REFERENCES, references), (PREDICTIONS, hypotheses)):
        text = "".join(f"{one}\n" for one in texts)
        write_text(os.path.join(folder, name), text, make_folder=True)


def read_texts(folder: str) -> tuple[list[str], list[str]]:
    """Return what `write_texts` has written.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: the files have other numbers of lines.
    """
    references, hypotheses = (
        read_text(os.path.join(folder, name), "results").split("\n")[:-1]
        for name in (REFERENCES, PREDICTIONS)
    )
    if len(references) != len(hypotheses):
        raise ValueError(
            f"{printable(folder)}: {len(references)} references and {len(hypotheses)} predictions"
        )
    return references, hypotheses


class Comparison(NamedTuple):
    """Word errors of two runs on the same utterances.

    Attributes:
        references: normalised.
        hypotheses: of the two runs, normalised.
        errors: of the two runs.
    """

    references: list[str]
    hypotheses: tuple[list[str], list[str]]
    errors: tuple[list[WordErrors], list[WordErrors]]

    @classmethod
    def of(cls, references: list[str], first: list[str], second: list[str]) -> Comparison:
        """Compare hypotheses of two runs."""
        one, two = (
            [word_errors(*pair) for pair in zip(references, texts, strict=True)]
            for texts in (first, second)
        )
        return cls(references, (first, second), (one, two))

    def differences(self) -> np.ndarray:
        """Return the word error rate of each utterance in the second run minus the first."""
        return np.array(
            [two.rate - one.rate for one, two in zip(*self.errors, strict=True)], np.float64
        )

    def figures(self) -> dict[str, Any]:
        """Return figures for reports: differences in percent points, and marked utterances."""
        differences = self.differences()
        words = np.array([one.words for one in self.errors[0]])
        weighted = float((differences * words).sum() / max(1, words.sum()))
        return {
            "utterances": len(differences),
            "weighted_difference": 100.0 * weighted,
            "marked": int((np.abs(differences) > MARKED).sum()),
        }

    def text(self) -> str:
        """Return the lines of wer_scores.txt: rates of each utterance, `***` where they differ by
        more than 0.1, and the differing texts.
        """
        lines = ["utterance  WER of first  WER of second  difference"]
        for number, difference in enumerate(self.differences()):
            one, two = (errors[number].rate for errors in self.errors)
            mark = "  ***" if abs(difference) > MARKED else ""
            lines.append(f"{number:9d}  {one:12.4f}  {two:13.4f}  {difference:+10.4f}{mark}")
            if mark:
                lines.append(f"    reference: {self.references[number]}")
                lines += [
                    f"    {name}: {texts[number]}"
                    for name, texts in zip(("first", "second"), self.hypotheses, strict=True)
                ]
        figures = self.figures()
        lines.append(
            f"difference weighted by words: {figures['weighted_difference']:+.4f} percent points;"
            f" {figures['marked']} of {figures['utterances']} utterances differ by more than"
            f" {MARKED}"
        )
        return "\n".join(lines) + "\n"

    def write(self, folder: str) -> None:
        """Write wer_scores.txt and wer_difference.png, a histogram of the differences."""
        write_text(os.path.join(folder, "wer_scores.txt"), self.text(), make_folder=True)
        figure = figures.new_figure(6.0, 4.0)
        axes = figure.add_subplot()
        axes.hist(np.clip(self.differences(), -1.0, 1.0), bins=list(_BINS))
        axes.set_yscale("symlog")
        axes.set_xlabel("word error rate of an utterance, second run minus first")
        axes.set_ylabel("utterances")
        figures.write_png(figure, os.path.join(folder, "wer_difference.png"))


def compare_runs(first: str, second: str, output: str) -> dict[str, Any]:
    """Compare the results of two runs and write the comparison.

    Args:
        first, second: folders that hold predictions.txt and references.txt.
        output: folder of wer_scores.txt and wer_difference.png.

    Returns:
        Word error rates of both in percent, and figures of the comparison.

    Raises:
        ValueError: the runs are on other utterances.
    """
    references, one = read_texts(first)
    others, two = read_texts(second)
    if references != others:
        raise ValueError(
            f"{printable(first)} and {printable(second)} have other references: compare runs on the"
            " same data"
        )
    comparison = Comparison.of(references, one, two)
    comparison.write(output)
    rates = {
        f"{name}_wer": word_error_rate(references, texts)
        for name, texts in (("first", one), ("second", two))
    }
    return rates | comparison.figures()
