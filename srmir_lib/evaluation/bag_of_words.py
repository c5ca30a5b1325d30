"""The rival that reads no order and no meaning: TF-IDF word counts and logistic regression.

It gets the same evidence as the reward models (labelled responses, preference pairs) and is tuned on the same
validation rows. A reward model that does not beat it has learned vocabulary.
"""

import re
from collections.abc import Sequence

import numpy as np
from scipy.sparse import vstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from srmir_lib.conversations import plain_text, text_of
from srmir_lib.errors import InputError
from srmir_lib.statistics import auroc, is_correct

READS = ("response", "pair", "products")
"""The answer's words; the prompt's and the answer's; the answer's and every (prompt word, answer word) together. Of two
answers to one prompt the prompt's own words say nothing, they cancel in the difference; products do not."""

NGRAMS = ((1, 1), (1, 2))

PENALTIES = (0.1, 1.0, 10.0, 100.0)  # few human pairs want a strong penalty, many labels a weak one


class WordCounts:
    """TF-IDF of words, marks and n-grams of (prompt, answer), as `reads` says; prompts may be conversations."""

    def __init__(self, reads: str, ngrams: tuple[int, int], examples: int):
        if reads not in READS:
            raise InputError(f"reads: {reads!r}; use one of {', '.join(READS)}")
        self.reads, self.lengths = reads, range(ngrams[0], ngrams[1] + 1)
        self.vectorizer = TfidfVectorizer(analyzer=self._words, min_df=min(2, examples), sublinear_tf=True)

    def _words(self, texts: tuple[str, str]) -> list[str]:
        prompt, answer = (re.findall(r"\w+|[^\w\s]", text.lower()) for text in texts)
        words = prompt + answer if self.reads == "pair" else answer
        counted = [" ".join(words[i : i + n]) for n in self.lengths for i in range(len(words) - n + 1)]
        if self.reads == "products":
            counted += [f"{asked} × {said}" for asked in set(prompt) for said in set(answer)]
        return counted

    def fit(self, prompts: Sequence, answers: Sequence) -> "WordCounts":
        """Learn the vocabulary and how rare its words are."""
        self.vectorizer.fit(_texts(prompts, answers))
        return self

    def __call__(self, prompts: Sequence, answers: Sequence):
        """Sparse (N, words)."""
        return self.vectorizer.transform(_texts(prompts, answers))


class TextBaseline:
    """Fitted word counts + logistic regression; `score(prompts, completions) -> (N,)`, higher is safer.

    `choice`: what validation chose (reads, ngrams, penalty) and what it reached there.
    """

    def __init__(self, counts: WordCounts, weights: np.ndarray, choice: dict):
        self.counts, self.weights, self.choice = counts, weights, choice

    def score(self, prompts: Sequence, completions: Sequence) -> np.ndarray:
        """Log-odds (up to a constant) of a safe response, (N,). Prompts are texts or conversations."""
        return self.counts(prompts, completions) @ self.weights

    def gaps(self, pairs) -> np.ndarray:
        """Score of the chosen minus that of the rejected answer, (N,)."""
        return self.score(pairs["prompt"], pairs["chosen"]) - self.score(pairs["prompt"], pairs["rejected"])


def fit_text_baseline(
    labelled,
    pairs,
    validation_labelled,
    validation_pairs,
    pair_weight: float = 1.0,
    reads: Sequence[str] = ("response", "pair"),
    ngrams: Sequence[tuple[int, int]] = NGRAMS,
    penalties: Sequence[float] = PENALTIES,
) -> TextBaseline:
    """Try every (what it reads, n-grams, inverse penalty C) and keep the best on validation.

    `labelled` (rows with prompt, completion, unsafe) decides by validation AUROC; with pairs only (prompt, chosen,
    rejected) validation pair accuracy does. A pair is one example, the difference of its two rows of counts, once each
    way round: logistic regression without labels, so to say.
    """
    labelled, pairs = (_columns(rows) for rows in (labelled, pairs))
    held = _columns(validation_labelled if labelled else validation_pairs)
    if not (labelled or pairs) or not held:
        raise InputError("text baseline: needs labelled responses or pairs, and validation rows of the same kind")
    known = [(rows["prompt"], rows[side]) for rows in (labelled, pairs) for side in rows if side in SIDES]
    prompts, answers = ([text for part in known for text in part[at]] for at in (0, 1))
    examples, best = sum(len(rows.get("prompt", ())) for rows in (labelled, pairs)), None
    for what in reads:
        for span in ngrams:
            counts = WordCounts(what, span, examples).fit(prompts, answers)
            features, targets, importance = _design(counts, labelled, pairs, pair_weight)
            for penalty in penalties:
                model = LogisticRegression(C=penalty, max_iter=2000).fit(features, targets, importance)
                choice = {"reads": what, "ngrams": list(span), "penalty": penalty}
                found = TextBaseline(counts, model.coef_[0], choice)
                choice["validation"] = _validate(found, held)
                if best is None or choice["validation"] > best.choice["validation"]:
                    best = found
    return best


SIDES = ("completion", "chosen", "rejected")


def _columns(rows) -> dict[str, list]:
    """Rows (dicts, or a `Dataset`) as columns; none at all: empty."""
    rows = list(rows or [])
    return {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}


def _design(counts: WordCounts, labelled: dict, pairs: dict, pair_weight: float) -> tuple:
    """Features, targets (1 = safe or preferred), weights; both classes of labelled rows weigh the same."""
    parts, targets, importance = [], [], []
    if labelled:
        safe = 1 - np.array(labelled["unsafe"])
        shares = np.bincount(safe, minlength=2)
        if not shares.all():
            raise InputError("text baseline: the labelled responses are all safe or all unsafe")
        parts.append(counts(labelled["prompt"], labelled["completion"]))
        targets.append(safe)
        importance.append((len(safe) / (2 * shares))[safe])
    if pairs:
        gap = counts(pairs["prompt"], pairs["chosen"]) - counts(pairs["prompt"], pairs["rejected"])
        parts += [gap, -gap]
        targets.append(np.repeat([1, 0], gap.shape[0]))
        importance.append(np.full(2 * gap.shape[0], pair_weight / 2))
    return vstack(parts), np.concatenate(targets), np.concatenate(importance)


def _validate(baseline: TextBaseline, held: dict) -> float:
    if "completion" in held:
        return auroc(-baseline.score(held["prompt"], held["completion"]), held["unsafe"])
    return float(is_correct(baseline.gaps(held)).mean())


def _texts(prompts: Sequence, answers: Sequence) -> list[tuple[str, str]]:
    return list(zip(map(plain_text, prompts), map(text_of, answers), strict=True))


def bag_of_words_pair_accuracy(train: Sequence[dict], test: Sequence[dict]) -> float:
    """Accuracy on the pairs of `test` by the words of the answers alone, fitted on `train` with a penalty of 1."""
    words = fit_text_baseline([], train, [], train, reads=["response"], ngrams=[(1, 1)], penalties=[1.0])
    return float(is_correct(words.gaps(_columns(test))).mean())


def bag_of_words_accuracy(train: Sequence[dict], test: Sequence[dict], column: str) -> float:
    """Accuracy on `test` of logistic regression on the prompt's words, fitted on `train`, for the label `column`."""
    (known, labels), (asked, wanted) = (
        ([text_of(row["prompt"]) for row in rows], [row[column] for row in rows]) for rows in (train, test)
    )
    counts = WordCounts("response", (1, 1), len(known)).fit([""] * len(known), known)
    model = LogisticRegression(max_iter=2000).fit(counts([""] * len(known), known), labels)
    return float(np.mean(model.predict(counts([""] * len(asked), asked)) == np.array(wanted)))
