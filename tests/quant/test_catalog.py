"""Tasks by name, with the columns that the hub's data sets have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from quant.tasks.catalog import load_tasks
from quant.tasks.grader import Verdict, is_gradable
from quant.tasks.questions import Question
from quant.tasks.task import Task
from rpam_lite.errors import RpamError

INSTRUCTION = "\nPlease reason step by step, and put your final answer within \\boxed{}."
COMMIT = "e53f048856ff4f594e959d75785d2c2d37b678ee"
HUB: dict[tuple[str, str | None, str], list[dict[str, Any]]] = {
    ("openai/gsm8k", "main", "test"): [{"question": "How many?", "answer": "<<5*300=1500>>1500\n#### 1,500"}],
    ("HuggingFaceH4/MATH-500", None, "test"): [
        {
            "problem": "1/4 + 1/4?",
            "solution": "...",
            "answer": "\\frac{1}{2}",
            "subject": "Algebra",
            "level": 3,
            "unique_id": "test/algebra/7.json",
        }
    ],
    ("HuggingFaceH4/aime_2024", None, "train"): [
        {"id": 60, "problem": "p?", "solution": "...", "answer": "025", "url": "...", "year": "2024"}
    ],
    ("openai/gsm8k", "main", "train"): [{"question": "How few?", "answer": "So 3.\n#### 3"}],
    ("DigitalLearningGmbH/MATH-lighteval", None, "train"): [
        {"problem": "p?", "level": level, "solution": solution, "type": "Algebra"}
        for level, solution in (
            ("Level 5", "First $\\boxed{2}$, no, $\\boxed{\\frac{1}{2}}$."),
            ("Level ?", "So $\\boxed 7$."),
            ("Level 1", "Seen at once."),
            ("Level 2", "It is $\\fbox{8}$."),
        )
    ],
    ("math-ai/aime25", None, "test"): [{"problem": "p?", "answer": "70", "id": "0"}],
    ("math-ai/amc23", None, "test"): [{"id": 0, "question": "q?", "answer": 27.0, "url": "..."}],
    ("math-ai/minervamath", None, "test"): [{"question": "q?", "answer": "2.75e11"}],
    ("Hothan/OlympiadBench", "OE_TO_maths_en_COMP", "train"): [
        {
            "id": 2231,
            "subfield": "Geometry",
            "context": context,
            "question": "q?",
            "solution": ["..."],
            "final_answer": answers,
            "is_multiple_answer": len(answers) > 1,
            "unit": None,
            "answer_type": "Numerical",
            "error": error,
        }
        | more
        for context, answers, error, more in (
            ("", ["4.2"], "1e-1", {}),
            ("Let x.", ["$\\frac{1}{2}$", "$-3$"], None, {"id": 2}),
        )
    ],
    ("Idavidrein/gpqa", "gpqa_diamond", "train"): [
        {
            "Record ID": f"rec{n}",
            "Question": "Which?\n",
            "Correct Answer": "right\n",
            "Incorrect Answer 1": "wrong 1",
            "Incorrect Answer 2": "wrong 2",
            "Incorrect Answer 3": "wrong 3",
            "Subdomain": "Physics",
        }
        for n in range(12)
    ],
}


@pytest.fixture(autouse=True)
def no_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RPAM_DATA", raising=False)
    monkeypatch.setattr("quant.tasks.catalog.answers", lambda hub: True)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """`load_dataset` with the rows above; returns the revisions asked for."""
    revisions: list[str | None] = []

    def load_dataset(path: str, name: str | None, split: str, revision: str | None) -> datasets.Dataset:
        revisions.append(revision)
        rows = datasets.Dataset.from_list(HUB[path, name, split])
        rows.info.download_checksums = {f"hf://datasets/{path}@{revision or COMMIT}/main/test.parquet": {}}
        return rows

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return revisions


def one(*names: Any) -> Task:
    return load_tasks(names)[0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gsm8k", Question("1", "How many?" + INSTRUCTION, "1500")),
        ("MATH-500", Question("test-algebra-7.json", "1/4 + 1/4?" + INSTRUCTION, "\\frac{1}{2}", 3)),
        ("aime24", Question("60", "p?" + INSTRUCTION, "025")),
        ("AIME 2025", Question("0", "p?" + INSTRUCTION, "70")),
        ("amc23", Question("0", "q?" + INSTRUCTION, "27")),
        ("minerva_math", Question("1", "q?" + INSTRUCTION, "2.75e11")),
        ("OlympiadBench", Question("2231", "q?" + INSTRUCTION, "4.2", 0, 0.1)),
    ],
)
def test_columns_become_questions(hub: list[str | None], name: str, expected: Question) -> None:
    assert one(name).questions[0] == expected


def test_train_splits_are_tasks_of_their_own(hub: list[str | None]) -> None:
    assert one("gsm8k:train").questions == [Question("1", "How few?" + INSTRUCTION, "3")]
    assert (one("GSM8K-train").name, one("gsm8k:test").name, one("math:train").name) == (
        "gsm8k-train",
        "gsm8k",
        "math-train",
    )
    # A row that tells no gold answer is left out, and keys stay those of the rows.
    assert [(q.key, q.answer, q.level) for q in one("math:train").questions] == [
        ("1", "\\frac{1}{2}", 5),
        ("2", "7", 0),
        ("4", "8", 2),
    ]


def test_without_a_network_only_the_cache_is_asked(hub: list[str | None], monkeypatch: pytest.MonkeyPatch) -> None:
    offline: list[bool] = []
    load = datasets.load_dataset

    def load_dataset(*args: Any, **kwargs: Any) -> Any:
        offline.append(datasets.config.HF_HUB_OFFLINE)
        return load(*args, **kwargs)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    for there in (True, False):
        monkeypatch.setattr("quant.tasks.catalog.answers", lambda hub, there=there: there)
        assert one("gsm8k").questions
    assert offline == [False, True]
    assert datasets.config.HF_HUB_OFFLINE is False


def test_answers_are_graded_as_the_set_asks(hub: list[str | None]) -> None:
    gsm8k, minerva, olympiad = load_tasks(["gsm8k", "minerva", "olympiadbench"])
    assert gsm8k.grade("so it is 1,500.", gsm8k.questions[0]) == Verdict(True, "same text", "no box")
    assert gsm8k.grade(r"\boxed{1500}", gsm8k.questions[0], think_open=True).reason == "think block not closed"
    assert minerva.grade(r"\boxed{2.75 \times 10^{11} \text{ erg}}", minerva.questions[0]).correct
    near, both = olympiad.questions
    assert olympiad.grade(r"\boxed{4.3}", near).correct
    assert both.question.startswith("Let x.\nq?\n")
    assert olympiad.grade(r"\boxed{-3, 0.5}", both).correct
    assert not olympiad.grade(r"\boxed{-3}", both).correct
    answers = [(r"\boxed{4.3}", near, False), (r"\boxed{4.3}", near, True), (r"\boxed{9}", both, False)]
    assert [olympiad.grade(*answer).correct for answer in answers] == [True, False, False]


def test_choices_are_shuffled_by_the_key(hub: list[str | None]) -> None:
    task = one("GPQA-diamond")
    for question in task.questions:
        assert f"\n{question.answer}) right\n" in question.question
        assert task.grade(f"\\boxed{{{question.answer}}}", question).correct
    golds = [question.answer for question in task.questions]
    assert len(set(golds)) > 2
    # Frozen: another order would make other questions of the same keys.
    assert "".join(golds) == "CCDCDCCABCBA"
    assert task.questions[0].question.endswith(
        "\n\nPlease reason step by step, and put the letter of your final answer within \\boxed{}."
    )


def test_source_names_the_commit_and_the_digest_the_questions(hub: list[str | None]) -> None:
    latest, pinned = one("gsm8k"), one("gsm8k@633f5ee")
    assert latest.source == f"openai/gsm8k@{COMMIT}/main/test"
    assert pinned.source == "openai/gsm8k@633f5ee/main/test"
    assert hub == [None, "633f5ee"]
    assert latest.digest == pinned.digest
    assert latest.digest != one("aime25").digest


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        (
            "gsm8k",
            ConnectionError("Couldn't reach 'openai/gsm8k' on the Hub (LocalEntryNotFoundError)"),
            "openai/gsm8k: is not in the cache and the hub can't be reached",
        ),
        (
            "gsm8k",
            ValueError("Couldn't find cache for openai/gsm8k for config 'main'\nAvailable configs ..."),
            "put gsm8k_test.jsonl into a folder and name that in RPAM_DATA",
        ),
        (
            "gpqa",
            datasets.exceptions.DatasetNotFoundError("Dataset 'Idavidrein/gpqa' is a gated dataset on the Hub."),
            "accept its licence on https://huggingface.co/datasets/Idavidrein/gpqa, then log in with `hf auth login`",
        ),
        (
            "gsm8k@abc",
            datasets.exceptions.DatasetNotFoundError("Revision 'abc' doesn't exist for dataset 'openai/gsm8k'"),
            "openai/gsm8k: has no revision 'abc'",
        ),
        ("gsm8k", ValueError('Unknown split "test".'), '(ValueError: Unknown split "test".)'),
    ],
)
def test_a_data_set_that_can_not_be_had(
    monkeypatch: pytest.MonkeyPatch, name: str, error: Exception, says: str
) -> None:
    def load_dataset(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(RpamError) as caught:
        load_tasks([name])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_data_set_that_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: [{"prompt": "?", "answer": "#### 1"}])
    with pytest.raises(RpamError, match="openai/gsm8k, row 1: has no column 'question', only prompt, answer"):
        load_tasks(["gsm8k"])
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: [{"question": "?", "answer": "#### "}])
    with pytest.raises(RpamError, match="row 1: has no gold answer"):
        load_tasks(["gsm8k"])


def test_local_copies_come_before_the_hub(
    hub: list[str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gsm8k_test.jsonl").write_text('{"question": "q?", "answer": "#### 3"}\n', encoding="utf-8")
    assert load_tasks(["gsm8k"], tmp_path)[0].source == str(tmp_path / "gsm8k_test.jsonl")
    (tmp_path / "gsm8k_train.jsonl").write_text('{"question": "q?", "answer": "#### 4"}\n', encoding="utf-8")
    monkeypatch.setenv("RPAM_DATA", str(tmp_path))
    assert one("gsm8k:train").questions[0].answer == "4"
    assert one("gsm8k").questions[0].answer == "3"
    assert hub == []
    # What the folder lacks, and a revision, come from the hub.
    assert one("aime25").source.startswith("math-ai/aime25@")
    assert one("gsm8k@633f5ee").questions[0].answer == "1500"
    monkeypatch.setenv("RPAM_DATA", str(tmp_path / "none"))
    with pytest.raises(RpamError, match="is no folder"):
        load_tasks(["gsm8k"])


@pytest.mark.parametrize(("name", "size"), [("gsm8k", 1319), ("math500", 500)])
def test_real_data_sets(shared_data: Path, name: str, size: int) -> None:
    task = load_tasks([name], shared_data / "data")[0]
    assert len(task.questions) == size
    wrong = [q.answer for q in task.questions if not task.grade(f"\\boxed{{{q.answer}}}", q).correct]
    assert not wrong
    if name == "gsm8k":  # for math500, tests/quant/test_grader.py has them parsed
        assert all(is_gradable(q.answer) for q in task.questions)
        rows = (shared_data / "data" / "gsm8k_test.jsonl").read_text(encoding="utf-8").splitlines()
        assert [q.answer for q in task.questions] == [
            json.loads(row)["answer"].split("#### ")[1].replace(",", "") for row in rows
        ]
    else:
        assert {q.level for q in task.questions} == {1, 2, 3, 4, 5}
