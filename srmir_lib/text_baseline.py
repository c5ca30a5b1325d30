"""The rival that reads no order and no meaning: TF-IDF word counts and logistic regression.

It gets the same evidence as the reward models (labelled responses, preference pairs) and is tuned on the same
validation rows. A reward model that does not beat it has learned vocabulary.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.sparse import spmatrix, vstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from srmir_lib.artifacts import InputError
from srmir_lib.detection import auroc, detection_measures, pair_accuracy, paired_auroc_gain, routed_danger
from srmir_lib.evaluation import Interval
from srmir_lib.templates import text_of

READS = ("response", "pair")
NGRAMS = ((1, 1), (1, 2))
PENALTIES = (0.1, 1.0, 10.0, 100.0)  # few human pairs want a strong penalty, many labels a weak one


class TextBaseline:
    """Fitted TF-IDF + logistic regression; `score(prompts, completions) -> (N,)`, higher is safer."""

    def __init__(self, vectorizer: TfidfVectorizer, weights: np.ndarray, reads: str, about: dict):
        self.vectorizer, self.weights, self.reads, self.about = vectorizer, weights, reads, about

    def score(self, prompts: Sequence, completions: Sequence) -> np.ndarray:
        """Log-odds (up to a constant) of a safe response, (N,). Prompts are texts or conversations."""
        return self.vectorizer.transform(_texts(prompts, completions, self.reads)) @ self.weights

    @property
    def choice(self) -> dict:
        """What validation chose (reads, ngrams, penalty) and what it reached there, without the other candidates."""
        return {name: value for name, value in self.about.items() if name != "tried"}


def fit_text_baseline(
    labelled,
    pairs,
    validation_labelled,
    validation_pairs,
    pair_weight: float = 1.0,
    reads: Sequence[str] = READS,
    ngrams: Sequence[tuple[int, int]] = NGRAMS,
    penalties: Sequence[float] = PENALTIES,
) -> TextBaseline:
    """Try every (what it reads, n-grams, inverse penalty C) and keep the best on validation.

    `labelled` (rows with prompt, completion, unsafe) decides by validation AUROC; with pairs only (prompt, chosen,
    rejected) validation pair accuracy does. A pair is one example, the difference of its two rows of counts, once each
    way round: logistic regression without labels, so to say. `.about` holds the choice and every candidate's score.
    """
    labelled, pairs = list(labelled or []), list(pairs or [])
    held = list((validation_labelled if labelled else validation_pairs) or [])
    if not (labelled or pairs) or not held:
        raise InputError("text baseline: needs labelled responses or pairs, and validation rows of the same kind")
    best, tried = None, []
    for what in reads:
        for span in ngrams:
            vectorizer = TfidfVectorizer(ngram_range=span, min_df=min(2, len(labelled) + len(pairs)), sublinear_tf=True)
            vectorizer.fit(
                _columns(labelled, "completion", what)
                + _columns(pairs, "chosen", what)
                + _columns(pairs, "rejected", what)
            )
            features, targets, importance = _design(vectorizer, labelled, pairs, what, pair_weight)
            for penalty in penalties:
                model = LogisticRegression(C=penalty, max_iter=2000).fit(features, targets, importance)
                found = TextBaseline(vectorizer, model.coef_[0], what, {})
                value = _validate(found, held, bool(labelled))
                tried.append({"reads": what, "ngrams": list(span), "penalty": penalty, "validation": value})
                if best is None or value > best.about["validation"]:
                    found.about, best = tried[-1], found
    best.about = {**best.about, "tried": tried}
    return best


def compare_with_words(
    models, labelled: Mapping, pairs: Mapping, pair_weight: float, seed: int = 0
) -> tuple[dict[str, dict[str, float]], dict[str, Interval], dict[str, dict]]:
    """Reward models next to two word counters with the same evidence: measures by method, gains, the counters' choices.

    `labelled` as of `realdata.labelled_responses`, `pairs` with train and test. `words` sees the labelled responses of
    the train split, `words_and_pairs` the pairs as well; both have the best AUROC of all candidates on validation. The
    measures are `detection_measures`; the gains are in AUROC, models minus words, on held-out questions and on
    diasafety, with intervals over questions (contexts).
    """
    held = {name: rows for name, rows in labelled.items() if name != "train"}
    danger, chosen = {"models": {name: routed_danger(models, rows) for name, rows in held.items()}}, {}
    for name, used in (("words", []), ("words_and_pairs", pairs["train"])):
        words = fit_text_baseline(labelled["train"], used, labelled["validation"], [], pair_weight)
        chosen[name] = words.choice
        danger[name] = {split: -words.score(rows["prompt"], rows["completion"]) for split, rows in held.items()}
    table = {name: detection_measures(found, held) for name, found in danger.items()}
    gains = {
        f"{split}_minus_{rival}": paired_auroc_gain(
            danger["models"][split], danger[rival][split], held[split]["unsafe"], held[split]["group"], seed=seed
        )
        for split in ("test", "diasafety")
        for rival in ("words", "words_and_pairs")
    }
    return table, gains, chosen


def _design(vectorizer, labelled, pairs, what: str, pair_weight: float) -> tuple[spmatrix, np.ndarray, np.ndarray]:
    """Features, targets (1 = safe or preferred), weights; both classes of labelled rows weigh the same."""
    parts, targets, importance = [], [], []
    if labelled:
        safe = np.array([1 - row["unsafe"] for row in labelled])
        shares = np.bincount(safe, minlength=2)
        if not shares.all():
            raise InputError("text baseline: the labelled responses are all safe or all unsafe")
        parts.append(vectorizer.transform(_columns(labelled, "completion", what)))
        targets.append(safe)
        importance.append((len(safe) / (2 * shares))[safe])
    if pairs:
        gap = vectorizer.transform(_columns(pairs, "chosen", what)) - vectorizer.transform(
            _columns(pairs, "rejected", what)
        )
        parts += [gap, -gap]
        targets += [np.ones(len(pairs), int), np.zeros(len(pairs), int)]
        importance.append(np.full(2 * len(pairs), pair_weight / 2))
    return vstack(parts), np.concatenate(targets), np.concatenate(importance)


def _validate(baseline: TextBaseline, held: Sequence[dict], labelled: bool) -> float:
    prompts = [row["prompt"] for row in held]
    if labelled:
        return auroc(
            -baseline.score(prompts, [row["completion"] for row in held]), [bool(row["unsafe"]) for row in held]
        )
    scores = (baseline.score(prompts, [row[column] for row in held]) for column in ("chosen", "rejected"))
    return pair_accuracy(*scores)


def _columns(rows: Sequence[dict], column: str, what: str) -> list[str]:
    return _texts([row["prompt"] for row in rows], [row[column] for row in rows], what)


def _texts(prompts: Sequence, completions: Sequence, what: str) -> list[str]:
    if what not in READS:
        raise InputError(f"reads: {what!r}; use one of {', '.join(READS)}")
    answers = [text_of(completion) for completion in completions]
    if what == "response":
        return answers
    questions = [p if isinstance(p, str) else "\n".join(message["content"] for message in p) for p in prompts]
    return [f"{question}\n{answer}" for question, answer in zip(questions, answers, strict=True)]
