"""The report's section "What caused it"."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stabilitylab.report.html.caused import caused
from stabilitylab.report.html.page import render_report
from stabilitylab.run.experiments import load_experiments, save_experiment, suggested_commands
from tests.report.pages import planted_episodes, report_run
from tests.synthetic import planted_run

PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000 1f15c4890000000a49444154789c6300010000050001".replace(
        " ", ""
    )
)


def test_experiments_are_kept_in_order_and_files_of_others_are_passed_over(tmp_path: Path) -> None:
    for word in ("first", "second"):
        save_experiment(
            tmp_path, "swap", f"the {word} one", settings={"at": 3}, results={"shares": np.array([np.nan, 1.0])}
        )
    (tmp_path / "cause" / "swap-003.json").write_text("not JSON")
    (tmp_path / "cause" / "notes.json").write_text("{}")
    found = load_experiments(tmp_path)
    assert [e.sentence for e in found] == ["the first one", "the second one"]
    assert found[0].results == {"shares": [None, 1.0]}
    assert found[0].picture is None
    save_experiment(tmp_path, "swap", "the third one", settings={}, results={})
    assert [e.path.name for e in load_experiments(tmp_path)] == ["swap-001.json", "swap-002.json", "swap-004.json"]
    assert (tmp_path / "cause" / "swap-003.json").read_text() == "not JSON"


def test_results_are_kept_if_their_picture_cannot_be_drawn(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        raise ValueError("cannot draw")

    with pytest.raises(ValueError, match="cannot draw"):
        save_experiment(tmp_path, "swap", "kept", settings={}, results={}, draw=fail)
    (kept,) = load_experiments(tmp_path)
    assert (kept.sentence, kept.picture) == ("kept", None)


def test_the_report_shows_what_was_tried_and_what_to_run_next(tmp_path: Path) -> None:
    planted = planted_run()
    run = report_run(planted.series, episodes=planted_episodes(planted))
    assert caused(run) is None
    assert "what caused it" not in render_report([run], None)
    save_experiment(
        tmp_path,
        "swap",
        "The spike needs <b>the batches</b>.",
        settings={},
        results={"replay_check": "replay check: bit for bit"},
        next_commands=["stablab cause blame run --at 9"],
        draw=lambda path: path.write_bytes(PIXEL) and None,
    )
    tried = replace(run, experiments=load_experiments(tmp_path), next_experiments=["stablab cause impulse run --at 5"])
    page = render_report([tried], None)
    assert "what caused it" in page
    assert "The spike needs &lt;b&gt;the batches&lt;/b&gt;." in page
    assert 'src="data:image/png;base64,' in page
    assert page.index("stablab cause blame run --at 9") < page.index("stablab cause impulse run --at 5")
    untried = render_report([replace(run, next_experiments=["stablab cause swap run --at 9"])], None)
    assert "No experiments have been made on this run." in untried


def test_commands_are_suggested_for_the_largest_episode_that_a_checkpoint_precedes(tmp_path: Path) -> None:
    planted = planted_run()
    episodes = [replace(e, ratio=float(i)) for i, e in enumerate(planted_episodes(planted), 2)]
    assert suggested_commands(tmp_path, episodes, []) == []  # nothing is kept
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.toml").touch()
    largest, other = episodes[-1], episodes[0]
    (tmp_path / "checkpoints" / f"iteration-{other.start + 1:06d}.pt").touch()
    commands = suggested_commands(tmp_path, episodes, [])
    assert commands[0] == f"stablab cause blame {tmp_path.name} --at {largest.start}"
    (tmp_path / "checkpoints" / f"iteration-{largest.start - 1:06d}.pt").touch()
    commands = suggested_commands(tmp_path, episodes, [])
    assert commands[0] == f"stablab cause swap {tmp_path.name} --at {largest.start}"
    assert f"stablab cause impulse {tmp_path.name} --layer {largest.leader} --at {largest.start - 1}" in commands
    made = save_experiment(tmp_path, "swap", "done", settings={}, results={})
    assert suggested_commands(tmp_path, episodes, [made]) == commands[1:]
