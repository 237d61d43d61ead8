"""What `rpam publish` refuses, before anything is sent."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from rpam_lite.checkpoint.publish import check_name
from rpam_lite.errors import RpamError
from rpam_lite.pipeline.stage import Run
from tests.rpam_lite.hub_that_takes import Hub, taking_hub
from tests.rpam_lite.published_run import do, run_to_publish
from tests.rpam_lite.test_hub import go_to

hub = pytest.fixture(taking_hub)
run = pytest.fixture(run_to_publish)


def test_what_the_token_may_not_is_said_before_anything_is_sent(
    run: Run, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RpamError, match="--to eve/tiny: the token is of ada, who can write to ada, lab"):
        do(run, "eve/tiny")
    hub.user["auth"]["accessToken"]["role"] = "read"
    with pytest.raises(RpamError, match="the token of ada can only read; run `hf auth login`"):
        do(run)
    monkeypatch.setenv("HF_TOKEN", "hf_bad")
    with pytest.raises(RpamError, match="the hub refuses the token; run `hf auth login`"):
        do(run)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(RpamError, match="this machine has no token for the hub; run `hf auth login`"):
        do(run)
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    go_to("http://127.0.0.1:9", monkeypatch)
    with pytest.raises(RpamError, match="ada/tiny: the hub can't be reached"):
        do(run)
    assert hub.repositories == {}


def test_a_public_repository_does_not_become_private_unnoticed(run: Run, hub: Hub) -> None:
    hub.repositories["ada/tiny"] = {}
    hub.public.add("ada/tiny")
    with pytest.raises(RpamError, match="ada/tiny: is there already and everybody can see it"):
        do(run, private=True)
    assert hub.repositories["ada/tiny"] == {}


def test_an_unfinished_or_changed_run_is_refused(run: Run, hub: Hub) -> None:
    recipe = run.recipe
    changed = replace(run, recipe=recipe.model_copy(update={"fit": recipe.fit.model_copy(update={"start": 0.7})}))
    with pytest.raises(RpamError, match="stage 'merge' is not done for this recipe as it is now, and 'publish' needs"):
        do(changed)
    (run.of("quantize") / "tiny-q8_0.gguf").write_bytes(b"cut off")
    with pytest.raises(RpamError, match="stage 'quantize' is not done"):
        do(run, dry=True)
    assert hub.asked == []


def test_the_gguf_files_wait_for_their_card(run: Run, hub: Hub) -> None:
    (run.of("report") / "manifest.json").unlink()
    with pytest.raises(RpamError, match=r"report: stage 'report' is not done .* run `rpam report` or `rpam run` first"):
        do(run, parts=("gguf",))
    assert hub.asked == []
    do(run, parts=("merged",))
    assert set(hub.repositories) == {"ada/tiny"}


@pytest.mark.parametrize("name", ["tiny", "ada/tiny/x", "ada/", "../tiny", "ada/tiny-GGUF", "ada/t--y"])
def test_names_that_can_not_be(name: str) -> None:
    with pytest.raises(RpamError, match=f"--to {re.escape(name)}: "):
        check_name(name)
