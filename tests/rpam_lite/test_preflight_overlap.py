"""Which questions of two files are one question, and how that is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from quant.tasks.questions import Question, load_questions
from rpam_lite.preflight.overlap import NEAR, overlaps
from rpam_lite.preflight.questions import check_questions
from rpam_lite.recipe import Fields, load_recipe
from tests.conftest import ROOT

TRAIN = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. "
    "How many clips did Natalia sell altogether in April and May?"
)


def similarity(one: str, other: str) -> float:
    """Of two questions; 0 below the limit."""
    found = overlaps([Question("1", one, "1")], [Question("1", other, "1")])
    return found[0].similarity if found else 0.0


@pytest.mark.parametrize(
    "other",
    [
        TRAIN.upper(),
        TRAIN.replace(",", " ,").replace("? ", "?\n"),
    ],
)
def test_case_spaces_and_punctuation_make_no_other_question(other: str) -> None:
    assert similarity(TRAIN, other) == 1


def test_a_thousand_is_a_thousand() -> None:
    assert similarity("What is 1,234,000 + 2?", "what is 1234000 + 2") == 1
    assert similarity("Add up 1,20,3 and 5.", "Add up 1203 and 5.") == 0


@pytest.mark.parametrize(
    "other",
    [
        TRAIN.replace("altogether ", ""),
        TRAIN.replace("then she sold", "afterwards sold"),
        "Solve this. " + TRAIN,
    ],
)
def test_a_reworded_question_is_nearly_the_same(other: str) -> None:
    assert NEAR <= similarity(TRAIN, other) < 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (TRAIN, TRAIN.replace("48", "36")),
        ("Find the value of 5 + 3 * 2.", "Find the value of 5 - 3 * 2."),
        ("Please find the value of 7 - 3.", "Please find the value of 3 - 7."),
        ("Compute 2 * (3 + 4) exactly.", "Compute 2 * 3 + 4 exactly."),
        (TRAIN, "A train goes 48 miles in April. How far does it go in May?"),
        ("Prove that the sum is even.", "Find all primes below the limit."),
    ],
)
def test_a_template_with_another_problem_in_it_is_another_question(one: str, other: str) -> None:
    assert similarity(one, other) == 0


def test_the_most_similar_line_is_named() -> None:
    measured = [Question("4", TRAIN.replace("altogether ", ""), "72"), Question("9", TRAIN, "72")]
    assert [(o.measured.key, o.similarity) for o in overlaps([Question("2", TRAIN, "72")], measured)] == [("9", 1.0)]


def test_the_embedded_pair_shares_nothing_and_nothing_comes_near() -> None:
    files = [load_questions(ROOT / f"recipes/tiny/{name}.jsonl") for name in ("calibration", "evaluation")]
    assert overlaps(files[0], files[1]) == []
    assert len(overlaps(files[0], files[0])) == len(files[0])


def test_findings_name_both_lines(tmp_path: Path) -> None:
    row = '{"question": "%s", "answer": "72"}\n'
    far = row % "What is 1 + 1?"
    (tmp_path / "c.jsonl").write_text(far + row % TRAIN + row % "How much is 2 + 2?", encoding="utf-8")
    near, same = row % TRAIN.replace("altogether ", ""), row % "how much is 2 + 2"
    (tmp_path / "e.jsonl").write_text(row % "What is 5?" + near + same, encoding="utf-8")
    (tmp_path / "r.yaml").write_text(
        "{version: 1, name: r, parents: {long: l, short: s}, label: {questions: c.jsonl}, eval: {questions: e.jsonl}}",
        encoding="utf-8",
    )
    few, *findings = check_questions(load_recipe(tmp_path / "r.yaml"))
    assert few.code == "few-questions"
    assert [(f.level, f.code) for f in findings] == [("ERROR", "overlap")] * 2
    assert "c.jsonl, line 3, and" in findings[0].message
    assert "e.jsonl, line 3: the same question, 'How much is 2 + 2?';" in findings[0].message
    assert "c.jsonl, line 2, and" in findings[1].message
    assert "e.jsonl, line 2: nearly the same question (same numbers and signs, " in findings[1].message
    assert "the limit is 50%" in findings[1].message


def test_the_recipe_names_fields_and_grader_of_the_evaluation(tmp_path: Path) -> None:
    recipe = load_recipe(ROOT / "recipes/tiny.yaml")
    file = tmp_path / "mine.csv"
    file.write_text("prompt,gold\nWhich letter comes first?,A\n", encoding="utf-8")

    def findings(**told: object) -> list[str]:
        changed = recipe.eval.model_copy(update={"questions": file, **told})
        return [f.message for f in check_questions(recipe.model_copy(update={"eval": changed}))]

    assert findings(fields=Fields(question="prompt", answer="gold"), grader="choice") == []
    (message,) = findings(grader="choice")
    assert "line 2: `question` is None" in message
    (message,) = findings(fields=Fields(question="prompt", answer="gold"), grader="regex", pattern="(")
    assert "pattern" in message
