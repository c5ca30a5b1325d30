"""The router: planted clusters are found, doubt becomes "unknown", and a saved router answers as before."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from srmir_lib.artifacts import read_json, write_json
from srmir_lib.conversations import user_message
from srmir_lib.data.router import PromptEncoder, Router, fit_router
from srmir_lib.errors import InputError
from srmir_lib.models.embeddings import embed
from srmir_lib.models.loading import load_trunk
from srmir_lib.models.trunk import Trunk

CLASSES = ["insult", "crimes", "privacy"]


def clusters(seed: int, rows: int = 60, spread: float = 0.3):
    """Embeddings (N, 4) around three corners, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = [CLASSES[i % 3] for i in range(rows)]
    corners = torch.eye(3, 4)[[i % 3 for i in range(rows)]] * 10
    return corners + spread * torch.randn(rows, 4, generator=generator), labels


@pytest.fixture
def router():
    return Router.fit(*clusters(0), *clusters(1), CLASSES)


def test_planted_clusters_are_found_and_a_stranger_is_not(router):
    embeddings, labels = clusters(2)
    probabilities = router.log_probabilities(embeddings).exp()
    assert torch.allclose(probabilities.sum(dim=1), torch.ones(60))
    right = sum(a == b for a, b in zip(router.decide(probabilities), labels, strict=True))
    assert right >= 54, "about 5 % of the known are given up as unknown, the rest is right"
    between = embeddings.mean(dim=0, keepdim=True)  # as far from each corner
    assert router.decide(router.log_probabilities(between).exp()) == ["unknown"]


def test_the_threshold_rejects_the_share_of_known_validation_prompts_that_was_asked_for():
    validation, labels = clusters(1, spread=4.0)
    for share in (0.0, 0.1, 0.5):
        router = Router.fit(*clusters(0, spread=4.0), validation, labels, CLASSES, rejected_share=share)
        answers = router.decide(router.log_probabilities(validation).exp())
        assert sum(answer == "unknown" for answer in answers) == pytest.approx(share * 60, abs=1)


def test_weights_undo_the_standardisation():
    """A naive second fit: standardise, fit with scikit-learn, predict with scikit-learn."""
    from sklearn.linear_model import LogisticRegression

    embeddings, labels = clusters(0, spread=4.0)
    embeddings = embeddings * torch.tensor([1.0, 100.0, 0.01, 1.0]) + 7
    router = Router.fit(embeddings, labels, embeddings, labels, CLASSES, penalties=[1.0])
    mean, std = embeddings.mean(dim=0), embeddings.std(dim=0)
    naive = LogisticRegression(C=1.0, class_weight="balanced", max_iter=2000).fit((embeddings - mean) / std, labels)
    expected = torch.tensor(naive.predict_proba((embeddings - mean) / std)).float()
    order = [list(naive.classes_).index(name) for name in CLASSES]
    assert torch.allclose(router.log_probabilities(embeddings).exp(), expected[:, order], atol=1e-4)


def test_two_classes_work_as_well():
    keep = [i for i in range(60) if i % 3 != 2]
    (train, labels), (held, held_labels) = clusters(0), clusters(1)
    part = [labels[i] for i in keep], [held_labels[i] for i in keep]
    router = Router.fit(train[keep], part[0], held[keep], part[1], CLASSES[:2], rejected_share=0.0)
    assert router.decide(router.log_probabilities(held[keep]).exp()) == part[1]


def test_unknown_can_be_a_class_of_its_own():
    embeddings, labels = clusters(0)
    labels = ["unknown" if label == "privacy" else label for label in labels]
    router = Router.fit(embeddings, labels, embeddings, labels, ["insult", "crimes", "unknown"], rejected_share=0.0)
    assert router.decide(router.log_probabilities(embeddings).exp()) == labels


@pytest.fixture
def reading_router(tiny_model):
    prompts = ["please help me", "open the red door", "you are right"] * 4
    reader = PromptEncoder(base_model=str(tiny_model), layer=1, question="Why would you refuse {prompt}?")
    embeddings = reader.embed(prompts, "cpu")
    return Router.fit(embeddings, CLASSES * 4, embeddings, CLASSES * 4, CLASSES, reader=reader, trunk="cpu")


def test_it_routes_texts_and_conversations_alike(reading_router, tiny_model):
    prompts = ["please help me", "open the red door", "you are right"]
    assert reading_router.route(prompts) == CLASSES
    assert reading_router.route([user_message(prompt) for prompt in prompts]) == CLASSES
    trunk, tokenizer = load_trunk(tiny_model, "cpu")
    asked = [f"Why would you refuse {prompt}?" for prompt in prompts]
    naive = torch.cat([embed(trunk, tokenizer, [text], layer=1) for text in asked])
    assert torch.allclose(reading_router.reader.embed(prompts, "cpu"), naive, atol=1e-5)


def test_a_router_is_fitted_on_rows_as_on_what_its_reader_makes_of_them(reading_router):
    prompts = ["please help me", "open the red door", "you are right"]
    rows = [{"prompt": user_message(x), "category": name} for x, name in zip(prompts, CLASSES, strict=True)] * 4
    rows = {"train": rows, "validation": rows}
    router = fit_router(rows, reading_router.reader, CLASSES, "cpu")
    assert router.fingerprint == reading_router.fingerprint and router.fitted == reading_router.fitted
    assert fit_router(rows, router.reader, CLASSES, "cpu", rejected_share=0.0).threshold == 0


def test_a_saved_router_answers_as_before_without_scikit_learn(reading_router, tmp_path, monkeypatch):
    prompts = ["please help me", "something quite different", "you are right"]
    before = reading_router.probabilities(prompts)
    folder = reading_router.save(tmp_path / "router")
    monkeypatch.setitem(__import__("sys").modules, "sklearn", None)
    again = Router.load(folder, "cpu")
    assert torch.allclose(again.probabilities(prompts), before, atol=1e-6)
    assert again.classes == CLASSES and again.threshold == pytest.approx(reading_router.threshold)
    assert {path.name for path in folder.iterdir()} == {"router.json", "router.safetensors"}


def test_a_router_reads_with_the_trunk_it_is_given(reading_router, trunk, tiny_model, tmp_path, monkeypatch):
    """Wherever that lies now."""
    prompts = ["please help me", "you are right"]
    before = reading_router.probabilities(prompts)
    moved = shutil.copytree(reading_router.save(tmp_path / "router"), tmp_path / "deep" / "er" / "router")
    monkeypatch.setattr("srmir_lib.data.router.load_trunk", lambda *_: pytest.fail("the weights are in memory"))
    assert torch.allclose(Router.load(moved, trunk).probabilities(prompts), before, atol=1e-6)
    elsewhere = Trunk.load(shutil.copytree(tiny_model, tmp_path / "elsewhere"), "cpu")
    assert torch.allclose(Router.load(moved, elsewhere).probabilities(prompts), before, atol=1e-6)


def test_a_copy_at_another_depth_finds_its_base_model(reading_router, tmp_path):
    """As a seed has it that takes over what the preset itself made."""
    moved = shutil.copytree(reading_router.save(tmp_path / "router"), tmp_path / "deep" / "er" / "router")
    again = Router.load(moved, "cpu").probabilities(["please help me"])
    assert torch.allclose(again, reading_router.probabilities(["please help me"]), atol=1e-6)


def test_bad_routers_are_refused_in_one_line(reading_router, router, tiny_model, tmp_path):
    with pytest.raises(InputError, match="no such file"):
        Router.load(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no reader"):
        router.route(["a"])
    with pytest.raises(InputError, match="how prompts are read"):
        router.save(tmp_path / "router")
    folder = reading_router.save(tmp_path / "router")
    other = shutil.copytree(tiny_model, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    save_file({k: v + 1 for k, v in weights.items()}, other / "model.safetensors", {"format": "pt"})
    lost = shutil.copytree(folder, tmp_path / "lost")
    value = read_json(folder / "router.json")
    write_json(lost / "router.json", value | {"reader": value["reader"] | {"base_model": "../../no/where"}})
    for trunk in ("cpu", Trunk.load(other, "cpu")):
        with pytest.raises(InputError, match="the base model of .* is not there"):
            Router.load(lost, trunk)
    value["reader"]["base_model"] = str(other)
    write_json(folder / "router.json", value)
    with pytest.raises(InputError, match="hash mismatch"):
        Router.load(folder, "cpu")
    (folder / "router.safetensors").write_bytes(b"half")
    with pytest.raises(InputError, match="damaged router"):
        Router.load(folder, "cpu")


def test_a_class_without_prompts_and_a_question_without_a_slot_are_refused(tiny_model):
    embeddings, labels = clusters(0)
    with pytest.raises(InputError, match="no training prompts of ethics"):
        Router.fit(embeddings, labels, embeddings, labels, [*CLASSES, "ethics"])
    with pytest.raises(InputError, match="must contain {prompt}"):
        PromptEncoder(base_model=str(tiny_model), question="harmful?").embed(["a"], "cpu")
