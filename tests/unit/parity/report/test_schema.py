"""parity.json has the form that its schema describes, all of it."""

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import parity.report
from parity.records import SCHEMA
from tests.unit.parity.report import results

SAMPLES = ("passing", "failing", "wrong_gradients", "broken_run", "empty", "nothing_asked")


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    found = json.loads((Path(parity.report.__file__).parent / "schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(found)
    return found


@pytest.mark.parametrize("name", SAMPLES)
def test_every_result_has_the_form_of_the_schema(schema, name):
    content = json.loads(getattr(results, name)().to_json())
    jsonschema.validate(content, schema)
    assert content["schema"] == SCHEMA


@pytest.mark.parametrize(
    "path",
    [
        ("schema",),
        ("gates", "layers", "status"),
        ("gates", "layers", "comparisons", 0, "status"),
        ("gates", "layers", "comparisons", 0, "error"),
        ("culprit_rows", 0, "worst", "reading"),
        ("weights", 0, "shape"),
        ("campaign", "matrix"),
    ],
)
def test_a_value_of_another_kind_or_missing_has_not(schema, path):
    content = json.loads(results.failing().to_json())
    jsonschema.validate(content, schema)
    for wrong in ("wrong", None):
        broken = copy.deepcopy(content)
        holder: Any = broken
        for step in path[:-1]:
            holder = holder[step]
        if wrong is None:
            del holder[path[-1]]
        else:
            holder[path[-1]] = {"unknown": wrong}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, schema)


def test_a_field_that_the_schema_does_not_know_has_not(schema):
    content = json.loads(results.passing().to_json())
    content["gates"]["layers"]["comparisons"][0]["extra"] = 1
    with pytest.raises(jsonschema.ValidationError, match="extra"):
        jsonschema.validate(content, schema)
