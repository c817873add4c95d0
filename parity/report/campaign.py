"""What a campaign of seeded faults (``parity.attack``) found, in the form in which a result keeps and shows it."""

import collections
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SURVIVED = "not caught"


class NotACampaignError(ValueError):
    """A file that no campaign wrote."""


def read_campaign(path: str | Path, environment: Mapping[str, Any]) -> dict[str, Any]:
    """Sums up an ``attack.json``.

    Args:
        path: The file.
        environment: Of the result that it is put beside (``parity.environment.describe_environment``).

    Returns:
        ``passed``; ``summary``, the figures in words; ``matrix``: {expected rung: {rung that turned red first, or "not
        caught": number of faults}}; ``survivors``: {name: reason}; ``alarms``: what was found wrong in sound ports;
        ``same_sources``: whether the campaign attacked the sources that the result speaks about.

    Raises:
        OSError: It cannot be read.
        NotACampaignError: It is no record of a campaign.
    """
    text = Path(path).read_text(encoding="utf-8")
    try:
        found = json.loads(text)
        matrix: dict[str, collections.Counter[str]] = {}
        for outcome in found["outcomes"]:
            matrix.setdefault(outcome["expected_rung"], collections.Counter())[outcome["rung"] or SURVIVED] += 1
        return {
            "passed": bool(found["passed"]),
            "summary": [str(line) for line in found["summary"]],
            "matrix": {rung: dict(counts) for rung, counts in matrix.items()},
            "survivors": {str(name): str(reason) for name, reason in found["survivors"].items()},
            "alarms": [f"seed {run['seed']}: {alarm}" for run in found["clean"] for alarm in run["alarms"]],
            "same_sources": found["environment"]["sources"] == environment["sources"],
        }
    except ValueError as error:
        raise NotACampaignError(f"{path}: no record of a campaign (epibert attack writes one): {error}") from None
    except (KeyError, TypeError, AttributeError):
        raise NotACampaignError(f"{path}: no record of a campaign (epibert attack writes one)") from None


def kill_matrix(campaign: Mapping[str, Any]) -> tuple[list[str], list[tuple[str, list[int]]]]:
    """The matrix as a table.

    Returns:
        (columns: the rungs, and at the end what was not caught; rows: expected rung and its counts).
    """
    matrix = campaign["matrix"]
    columns = list(
        dict.fromkeys([*matrix, *(rung for counts in matrix.values() for rung in counts if rung != SURVIVED)])
    )
    columns.append(SURVIVED)
    return columns, [(rung, [counts.get(column, 0) for column in columns]) for rung, counts in matrix.items()]
