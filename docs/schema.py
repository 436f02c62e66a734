"""Writes docs/schema.json: what `stablab analyze --format json` and `stablab compare --format json` print.

    python docs/schema.py

From the dataclasses of the results, so that a field that is added is described; a test holds the file to them and
checks real answers against it.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from stabilitylab.analysis.results import SCHEMA_VERSION, RunAnalysis
from stabilitylab.comparison.results import Comparison

PATH = Path(__file__).parent / "schema.json"


def build(*, strict: bool = False) -> dict[str, Any]:
    """The whole schema: an answer is one of its two definitions. ``strict``: no key beyond those described; the file
    allows for keys that later versions add."""
    found, known = {}, {}
    for kind in (RunAnalysis, Comparison):
        whole = TypeAdapter(kind).json_schema(mode="serialization", ref_template="#/$defs/{model}")
        known |= whole.pop("$defs", {})
        found[kind.__name__] = whole
    defs = {name: _adapted(name, schema) for name, schema in sorted((known | found).items())}
    whole = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "StabilityLab answers, schema 1",
        "description": "What stablab analyze and stablab compare print with --format json. A part that was not asked "
        "for is missing; what is not finite is null. Iterations are 0-based.",
        "anyOf": [{"$ref": "#/$defs/RunAnalysis"}, {"$ref": "#/$defs/Comparison"}],
        "$defs": defs,
    }
    return whole if strict else _lenient(whole)


def _lenient(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_lenient(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {key: _lenient(value) for key, value in schema.items() if key != "additionalProperties"}


def _adapted(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """A dataclass as the JSON writes it: the few names that differ, null for what is not finite, its docstring."""
    schema = _nullable(schema)
    properties, required = schema["properties"], schema.get("required", [])
    text = {"type": "string"}
    if name == "Lag":
        for key, field in (("from", "source"), ("to", "target")):
            properties[key] = properties.pop(field)
        properties.pop("lags"), properties.pop("null_lags")
        required = [{"source": "from", "target": "to"}.get(key, key) for key in required]
    elif name == "Episode":
        row = {"layer": text, "onset": {"type": "integer"}}
        properties["order"] = {"type": "array", "items": _object(row)}
    elif name == "Resolution":
        row = {"width": {"type": "integer"}, "probability": {"type": "number"}}
        properties["seen"] = {"type": "array", "items": _object(row)}
    elif name == "RunAnalysis":
        layer = {"name": text, "depth": {"type": "integer"}}
        properties["layers"] = {"type": "array", "items": _object(layer)}
        account = {"type": "object", "description": "with --explain: what happened, the evidence, what to try next"}
        properties |= {"schema": {"const": SCHEMA_VERSION}, "explain": {"type": "array", "items": account}}
        required = ["schema", "run", "iterations", "layers", "notes"]
    elif name == "LrSensitivity":
        rate = {"base_lr": {"type": ["number", "null"]}, "final_knn": {"type": ["number", "null"]}}
        properties["by_lr"] = {"type": "array", "items": _object(rate)}
    elif name == "Comparison":
        power = {"type": "array", "description": "probability that the 95% interval excludes 0, by effect and seeds"}
        properties |= {"schema": {"const": SCHEMA_VERSION}, "by": text, "power": power}
        required = ["schema", *required]
    about = _docstrings().get(name)
    head = {"description": about} if about else {}
    shape = {"type": "object", "properties": properties, "required": sorted(required), "additionalProperties": False}
    return head | shape


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _nullable(schema: Any) -> Any:
    """JSON has no NaN and no infinity: a number may be null. Defaults and titles say nothing here."""
    if isinstance(schema, list):
        return [_nullable(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: _nullable(value) for key, value in schema.items() if key not in ("default", "title")}
    if kept.get("type") == "number":
        kept["type"] = ["number", "null"]
    return kept


def _docstrings() -> dict[str, str]:
    """Dataclass -> its docstring, on one line."""
    found: dict[str, str] = {}
    waiting: list[Any] = [RunAnalysis, Comparison]
    import stabilitylab.analysis as package

    for path in sorted(Path(package.__file__ or "").parents[1].glob("[ac][no][am]*/*.py")):
        module = __import__(f"stabilitylab.{path.parent.name}.{path.stem}", fromlist=["x"])
        waiting += [value for value in vars(module).values() if dataclasses.is_dataclass(value)]
    for kind in waiting:
        if isinstance(kind, type) and kind.__doc__ and not kind.__doc__.startswith(f"{kind.__name__}("):
            found[kind.__name__] = " ".join(inspect.cleandoc(kind.__doc__).split()).replace("``", "`")
    return found


if __name__ == "__main__":
    PATH.write_text(json.dumps(build(), indent=1) + "\n", encoding="utf-8")
