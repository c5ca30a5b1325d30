"""Is the lab hard enough? What a bag of words reaches on held-out combinations."""

from collections.abc import Sequence

import numpy as np

from srmir_lib.templates import text_of


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
