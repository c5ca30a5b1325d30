"""How often a reward model prefers the better answer, and how far a bag of words gets on the same pairs."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from srmir_lib.artifacts import InputError
from srmir_lib.evaluation import bootstrap_interval
from srmir_lib.reward_model import score_sets
from srmir_lib.templates import text_of

FEATURES = ("response", "prompt_and_response")


def reward_gaps(models, pairs) -> Tensor:
    r"""$d_j=r_j(x,y^+)-r_j(x,y^-)$ of every model: rows with prompt, chosen, rejected -> (N, K), raw score units."""
    scores, count = models.score(*_both(pairs)), len(pairs["prompt"])
    return scores[:count] - scores[count:]


def scores_of_sets(sets: Mapping, pairs) -> dict[str, Tensor]:
    """Scores of both answers by several sets of reward models, name -> (2, N, K), the chosen ones first; sets on one
    trunk read the pairs once."""
    return {name: scores.unflatten(0, (2, -1)) for name, scores in score_sets(sets, *_both(pairs)).items()}


def gaps_of_sets(sets: Mapping, pairs) -> dict[str, Tensor]:
    """`reward_gaps` of several sets of reward models, name -> (N, K); those on one trunk read the pairs once."""
    return {name: chosen - rejected for name, (chosen, rejected) in scores_of_sets(sets, pairs).items()}


def _both(pairs) -> tuple[list, list]:
    """Prompts and answers of all chosen sides, then of all rejected ones: a trunk reads each prompt once for both."""
    return [*pairs["prompt"], *pairs["prompt"]], [*pairs["chosen"], *pairs["rejected"]]


def routed_gaps(models, pairs) -> Tensor:
    """Each pair's reward gap by the model of its label, (N,), raw; every label must have a model."""
    scores, count = models.score(*_both(pairs), [*pairs["category"], *pairs["category"]]), len(pairs["prompt"])
    return scores[:count] - scores[count:]


def correct(gaps: Tensor) -> np.ndarray:
    """1 where the chosen answer scores higher, 0 where lower, one half for a tie; same shape as `gaps`."""
    return (gaps > 0).double().numpy() + 0.5 * (gaps == 0).double().numpy()


def accuracy_matrix(gaps: Tensor, labels: Sequence[str], categories: Sequence[str]) -> np.ndarray:
    """Pair accuracy of model i on pairs labelled category j: gaps (N, K), labels (N,) -> (K, C); NaN without pairs."""
    right, labels = correct(gaps), np.asarray(labels)
    means = [
        right[labels == name].mean(axis=0) if (labels == name).any() else np.full(right.shape[1], np.nan)
        for name in categories
    ]
    return np.stack(means, axis=1)


def category_index(names: Sequence[str], categories: Sequence[str]) -> Tensor:
    """Which model answers for each row, (N,) long; -1 for a name without a model: there the mean of all answers."""
    index = {name: j for j, name in enumerate(categories)}
    return torch.tensor([index.get(name, -1) for name in names], dtype=torch.long)


def accuracy_rows(gaps: Mapping[str, Tensor], levels: Sequence[str], seed: int = 0) -> list[dict]:
    """Pair accuracy of every method on every difficulty: rows with label, group, estimate, low, high (95 % bootstrap).

    `gaps`: method -> reward gaps (N,) on the same pairs, `levels` (N,) their difficulty.
    """
    levels = np.asarray(levels)
    return [
        {"label": name, "group": level, **bootstrap_interval(correct(gap)[levels == level], seed=seed)._asdict()}
        for name, gap in gaps.items()
        for level in sorted(set(levels.tolist()))
    ]


def difference_rows(treatment: Tensor, control: Tensor, levels: Sequence[str], seed: int = 0) -> list[dict]:
    """Accuracy of one method minus that of another on the same pairs, per difficulty, as rows like `accuracy_rows`."""
    levels, difference = np.asarray(levels), correct(treatment) - correct(control)
    return [
        {"label": "difference", "group": level, **bootstrap_interval(difference[levels == level], seed=seed)._asdict()}
        for level in sorted(set(levels.tolist()))
    ]


def as_metrics(rows: Sequence[Mapping]) -> dict[str, float]:
    """Rows -> `pair_accuracy_<group>_<label>` with its `_low` and `_high`, for metrics.json."""
    parts = {"estimate": "", "low": "_low", "high": "_high"}
    return {f"pair_accuracy_{row['group']}_{row['label']}{end}": row[key] for row in rows for key, end in parts.items()}


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
