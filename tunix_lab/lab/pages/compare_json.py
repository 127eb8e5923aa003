"""A comparison as JSON values, for programs."""

import dataclasses
from typing import Any

from tunix_lab.lab.pages.compare import Cell, Comparison, Number
from tunix_lab.lab.pages.headline import strict_number
from tunix_lab.lab.pages.run_view import RunView


def to_json(comparison: Comparison, samples: int | None = None) -> dict[str, Any]:
    """The comparison as JSON values; a number that is not finite is null."""
    return {
        "columns": [
            {
                "label": column.label,
                "runs": [_run_json(view) for view in column.views],
                "counted": [view.run_id for view in column.counted],
                "notes": list(column.notes),
                "metrics": {
                    name: _cell_json(cells[index]) for name, cells in comparison.metrics.items() if cells[index] is not None
                },
            }
            for index, column in enumerate(comparison.columns)
        ],
        "settings": {difference.name: list(difference.values) for difference in comparison.settings},
        "surroundings": {difference.name: list(difference.values) for difference in comparison.surroundings},
        "caveats": list(comparison.caveats),
        "samples": [dataclasses.asdict(answers) for answers in comparison.answers[:samples]],
    }


def _run_json(view: RunView) -> dict[str, Any]:
    state = view.state
    return {"run_id": view.run_id, "status": state.status, "step": state.step, "duration_s": view.duration_s}


def _cell_json(cell: Cell) -> dict[str, Any]:
    def plain(number: Number | None) -> dict[str, Any] | None:
        return None if number is None else {"value": strict_number(number.value), "std": strict_number(number.std), "n": number.n}

    return {"last": plain(cell.last), "best": plain(cell.best), "best_step": cell.best_step}
