"""The rival that reads no order and no meaning: TF-IDF word counts and logistic regression.

It gets the same evidence as the reward models (labelled responses, preference pairs) and is tuned on the same
validation rows. A reward model that does not beat it has learned vocabulary.
"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.sparse import spmatrix, vstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from srmir_lib.conversations import text_of
from srmir_lib.errors import InputError
from srmir_lib.statistics import auroc, pair_accuracy

FEATURES = ("response", "prompt_and_response")


def bag_of_words_gaps(
    train, validation, test, features: str = "response", penalties: Sequence[float] = (0.01, 0.1, 1.0, 10.0)
) -> Tensor:
    """Reward gaps (N,) on `test` of a linear Bradley-Terry model on TF-IDF words, fitted on `train`.

    "response": words of the answer only. "prompt_and_response": also every (prompt word, answer word) together; the
    prompt's words alone would cancel in the gap. The inverse penalty has the best likelihood on `validation`.
    """
    from sklearn.linear_model import LogisticRegression

    if features not in FEATURES:
        raise InputError(f"features: {features!r} is none of {', '.join(FEATURES)}")
    encode = _encoder(train, crossed=features == "prompt_and_response")
    x_train, x_valid, x_test = encode(train), encode(validation), encode(test)
    met = np.flatnonzero(x_train.tocsc().count_nonzero(axis=0))  # of the rest, most of all products, the weights are 0
    x_train, x_valid, x_test = (x[:, met] for x in (x_train, x_valid, x_test))
    both, target = _stacked(x_train), np.repeat([1, 0], x_train.shape[0])
    fits = [
        LogisticRegression(C=penalty, fit_intercept=False, max_iter=1000).fit(both, target) for penalty in penalties
    ]
    likelihood = [-np.logaddexp(0, -fit.decision_function(x_valid)).mean() for fit in fits]
    return torch.tensor(fits[int(np.argmax(likelihood))].decision_function(x_test))


def _stacked(gaps):
    """Each pair both ways round, so that the two classes are balanced and no intercept is needed."""
    from scipy.sparse import vstack

    return vstack([gaps, -gaps])


def _encoder(train, crossed: bool):
    """A function from rows to sparse feature gaps (N, F): chosen minus rejected."""
    from scipy.sparse import csr_array, hstack, vstack
    from sklearn.feature_extraction.text import TfidfVectorizer

    def texts(rows, column: str) -> list[str]:
        return [text_of(messages) for messages in rows[column]]

    def vectorizer() -> TfidfVectorizer:
        return TfidfVectorizer(token_pattern=r"\S+")

    answers = vectorizer().fit(texts(train, "chosen") + texts(train, "rejected"))
    questions = vectorizer().fit(texts(train, "prompt"))

    def encode(rows):
        gaps = answers.transform(texts(rows, "chosen")) - answers.transform(texts(rows, "rejected"))
        if not crossed:
            return csr_array(gaps)
        asked = questions.transform(texts(rows, "prompt"))
        products = [_outer(asked, gaps, row) for row in range(gaps.shape[0])]
        return csr_array(hstack([gaps, vstack(products)]))

    return encode


def _outer(left, right, row: int):
    """Row `row` of every product of a left and a right feature, (1, F_left * F_right) sparse."""
    from scipy.sparse import csr_array, kron

    return csr_array(kron(csr_array(left[[row]]), csr_array(right[[row]])))


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


def bag_of_words_accuracy(train: Sequence[dict], test: Sequence[dict], column: str) -> float:
    """Accuracy on `test` of logistic regression on the prompt's words, fitted on `train`, for the label `column`."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(CountVectorizer(token_pattern=r"\S+"), LogisticRegression(max_iter=2000))
    model.fit([text_of(row["prompt"]) for row in train], [row[column] for row in train])
    predicted = model.predict([text_of(row["prompt"]) for row in test])
    return float(np.mean(predicted == np.array([row[column] for row in test])))


def bag_of_words_pair_accuracy(train: Sequence[dict], test: Sequence[dict]) -> float:
    """Accuracy on gold pairs of a linear Bradley-Terry model on the words of the answers alone."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    words = CountVectorizer(token_pattern=r"\S+").fit([text_of(r[s]) for r in train for s in ("chosen", "rejected")])
    gaps = [
        (
            words.transform([text_of(row["chosen"]) for row in rows])
            - words.transform([text_of(row["rejected"]) for row in rows])
        ).toarray()
        for rows in (train, test)
    ]
    both, target = np.concatenate([gaps[0], -gaps[0]]), np.repeat([1, 0], len(train))
    model = LogisticRegression(fit_intercept=False, max_iter=2000).fit(both, target)
    return float(np.mean(model.decision_function(gaps[1]) > 0))
