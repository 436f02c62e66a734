"""docs/schema.json matches the code, and the output of the code matches the schema."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import jsonschema
import pytest

from docs.schema import PATH, build
from stabilitylab.analysis.pipeline import analyze_run
from stabilitylab.analysis.results import SCHEMA_VERSION, RunSeries, plain
from stabilitylab.comparison.pooled import by_mitigation
from tests.report.pages import compared_runs, comparison_of
from tests.synthetic import planted_run


def check(answer: dict[str, Any]) -> None:
    jsonschema.validate(json.loads(json.dumps(answer, allow_nan=False)), build(strict=True))


def keys(schema: Any) -> Any:
    """The schema without its prose, which follows the docstrings whenever the file is written again."""
    if isinstance(schema, list):
        return [keys(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {key: keys(value) for key, value in schema.items() if key != "description" or isinstance(value, dict)}


def test_the_file_is_current() -> None:
    assert keys(json.loads(PATH.read_text(encoding="utf-8"))) == keys(build()), "run: python docs/schema.py"


def test_answers_follow_it_and_nothing_else_does() -> None:
    answer = analyze_run(planted_run().series).to_dict()
    check(answer)
    check(analyze_run(RunSeries("empty", 0, ())).to_dict())
    check(analyze_run(planted_run().series).only(spikes=True, lag=False, dips=False).to_dict())
    for wrong in (
        answer | {"new_key": 1},
        answer | {"iterations": "many"},
        {k: v for k, v in answer.items() if k != "run"},
    ):
        with pytest.raises(jsonschema.ValidationError):
            check(wrong)


def test_comparisons_follow_it() -> None:
    runs = compared_runs(seeds=3, rates=(0.1,))
    lags = by_mitigation((run.summary.mitigation, run.analysis) for run in runs)
    whole = {"schema": SCHEMA_VERSION, "by": "mitigation"} | replace(comparison_of(runs), lags=lags).to_dict()
    check(plain(whole | {"power": [{"effect_size": 1.0, "seeds": 3, "power": 0.1}]}))
