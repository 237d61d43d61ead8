"""Chat templates that open the think block, and the same without it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from rpam_lite.checkpoint.pair import open_pair, open_parent
from rpam_lite.checkpoint.prefill import with_neutral_template, without_prefill
from rpam_lite.checkpoint.vocabulary import chat_template, opens_think_block
from rpam_lite.errors import RpamError
from rpam_lite.fit import coefficients
from rpam_lite.pipeline import others
from rpam_lite.preflight.tokens import check_template
from rpam_lite.recipe import OURS
from rpam_lite.run_files import COEFFICIENTS

HERE = Path("here")
R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '<think>\\n' + m['content'] }}"
    "{% else %}{{ '<｜User｜>' + m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"
)
PLAIN = R1.replace("<｜Assistant｜><think>\\n", "<｜Assistant｜>")


def test_only_the_block_of_the_prompt_is_taken_out() -> None:
    assert without_prefill(R1, HERE) == PLAIN
    assert without_prefill(PLAIN, HERE) == PLAIN
    assert without_prefill(R1.replace("\\n' }}{% endif %}", '\n" }}{% endif %}').replace("'<｜Ass", '"<｜Ass'), HERE)


def test_a_block_that_an_instruction_only_names_is_not_open() -> None:
    told = "{{ 'Reason inside <think> tags. ' + messages[0]['content'] + '\\nAnswer:' }}"
    assert not opens_think_block(told, HERE)
    assert without_prefill(told, HERE) == told


def test_a_template_that_hides_its_block_is_refused() -> None:
    hidden = "{{ messages[0]['content'] }}{% if add_generation_prompt %}<think>{% endif %}"
    assert opens_think_block(hidden, HERE)
    with pytest.raises(RpamError, match="here: its chat template opens a think block in a way that can't be taken out"):
        without_prefill(hidden, HERE)


@pytest.mark.parametrize("where", ["chat_template.jinja", "tokenizer_config.json"])
def test_the_donors_files_are_copied_but_for_the_template(
    pair: Path, tmp_path: Path, edit_json: Callable[..., None], where: str
) -> None:
    folder = pair / "long"
    if where.endswith("json"):
        edit_json(folder / where, chat_template=R1)
    else:
        (folder / where).write_text(R1, encoding="utf-8")
    donor = open_parent(folder)
    neutral = with_neutral_template(donor, tmp_path / "copies")
    assert chat_template(neutral.folder) == PLAIN
    assert chat_template(folder) == R1
    assert neutral.config == donor.config
    assert list(neutral.names()) == donor.names()
    for name in ("tokenizer.json", "config.json"):
        assert (neutral.folder / name).read_bytes() == (folder / name).read_bytes()
    assert json.loads((neutral.folder / "tokenizer_config.json").read_text(encoding="utf-8"))["eos_token"]
    # A donor whose template opens nothing stays what it is.
    assert with_neutral_template(open_parent(pair / "short"), tmp_path / "none").folder == pair / "short"
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("template", [R1, PLAIN])
def test_a_mergekit_recipe_says_what_it_cannot_carry(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    (pair / "long" / "chat_template.jinja").write_text(template, encoding="utf-8")
    opened = open_pair(pair / "long", pair / "short", None, "long")
    copies = tmp_path / "copies"
    said: list[str] = []
    run = SimpleNamespace(
        recipe=SimpleNamespace(
            parents=SimpleNamespace(long=pair / "long", short=pair / "short"),
            merge=SimpleNamespace(method=OURS, donor="long", dtype="float16"),
        ),
        folder=tmp_path,
        pair=lambda: opened._replace(donor=with_neutral_template(opened.donor, copies)),
        say=said.append,
    )
    monkeypatch.setattr(others, "_require_fit", lambda run: None)
    (tmp_path / "fit").mkdir()
    coefficients.save(coefficients.scalar(0.5), tmp_path / COEFFICIENTS)
    others.write_mergekit(run, tmp_path / "merge.yaml")  # type: ignore[arg-type]
    assert [str(copies) in line for line in said] == ([False, True] if template == R1 else [False])


def test_a_short_parent_that_knows_no_open_block_is_warned_of(pair: Path, edit_json: Callable[..., None]) -> None:
    long, short = pair / "long", pair / "short"
    edit_json(long / "tokenizer_config.json", chat_template=R1)
    (finding,) = check_template(long, short)
    assert (finding.level, finding.code, finding.key) == ("WARNING", "think-prefill", "merge.think_prefill")
    assert f"{short} is used to no such block" in finding.message
    (finding,) = check_template(long, short, "drop")
    assert finding.level == "INFO"
    edit_json(short / "tokenizer_config.json", chat_template=R1)
    (finding,) = check_template(long, short)
    assert finding.level == "INFO"
    (finding,) = check_template(long, short, decides=True)  # a row would have no first token to choose
    assert (finding.level, "a row has nothing to choose" in finding.effect) == ("ERROR", True)
