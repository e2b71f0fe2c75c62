"""What the gates of a study's arms learnt: a page per arm over its finished seeds, and an overview."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from simlap.config import Experiment, validate
from simlap.errors import ConfigError, UserError
from simlap.evaluate.gate_seeds import merge_seeds
from simlap.record.journal import cell_storage, read_result
from simlap.record.view import ArmView, CellView, EpochRow, StudyView
from simlap.report.gate_study import PAGE, SCHEMA_VERSION, arm_entry, overview_page
from simlap.report.gates import write_gates_page
from simlap.run.evaluate import open_checkpoint
from simlap.run.gates import GateStudio, gates_protocol, learnt_gates, stored_analysis
from simlap.storage import Storage


def write_gate_pages(
    storage: Storage,
    study: StudyView,
    *,
    arms: Sequence[str] = (),
    pairs: Sequence[str] = (),
    out: Storage | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[str]:
    """Write `<arm>.html` and `<arm>.json` for every arm with learnt gates, `index.html` and `summary.json`; returns their names.

    Analyses that runs left are used as they are, missing ones are computed from the final checkpoints and kept beside the
    runs, one by one: what was interrupted goes on where it was.

    Args:
        storage: that holds `cells/` and `studies/`.
        study: its view.
        arms: only those with these names (default: all). What is there of the others stays.
        pairs: `cat:dog`, ... to be shown.
        out: folder (default: `gates` of the study).
        say: told what is computed.

    Raises:
        ConfigError: no such arm, no such class.
        UserError: no arm has learnt gates and a finished seed.
    """
    wanted = _chosen(study, arms)
    folder = out or storage.child("studies", study.name, "gates")
    entries: list[tuple[dict[str, Any], dict[str, Any]]] = []
    left_out, written = [], []
    pages = _page_names([arm.name for arm in study.arms])
    for arm in study.arms:
        if arm not in wanted:
            entries += _kept(folder, arm.name)
            continue
        cells = [cell for cell in arm.cells if cell.state == "done"]
        experiments = {cell.seed: validate(Experiment, dict(cell.config), file=cell.cell_id) for cell in cells}
        if cells and not learnt_gates(experiments[cells[0].seed]):
            left_out.append(f"{arm.name}: it has no gates that learn.")
            continue
        if not cells:
            left_out.append(f"{arm.name}: no seed is finished.")
            continue
        merged, first = _arm(storage, arm, cells, experiments, say)
        look = first.look(pairs)
        training: dict[str, list[EpochRow]] = {f"seed {cell.seed}": cell.rows for cell in cells}
        written += write_gates_page(
            {**merged, "pair_gates": look.artefact["pair_gates"]}, folder, f"{study.name}: {arm.name}",
            name=pages[arm.name], training=training, pictures=look.pictures, of=f"Seed {cells[0].seed}",
        )  # fmt: skip
        ids = {cell.seed: cell.cell_id for cell in cells}
        entries.append((arm_entry(arm.name, ids, f"{pages[arm.name]}.html", merged), merged))
        if len(cells) < len(study.seeds_of(arm)):
            left_out.append(f"{arm.name}: {len(cells)} of {len(study.seeds_of(arm))} seeds are finished.")
    if not written:
        raise UserError(f"no arm of {study.name} has learnt gates and a finished seed:\n" + "\n".join(left_out))
    folder.write(PAGE, overview_page(study.name, entries, left_out).encode())
    folder.write_json(
        "summary.json",
        {
            "schema_version": SCHEMA_VERSION,
            "study": study.name,
            "arms": [entry for entry, _ in entries],
            "left_out": left_out,
        },
    )
    return [PAGE, "summary.json", *written]


def _arm(
    storage: Storage,
    arm: ArmView,
    cells: Sequence[CellView],
    experiments: dict[int, Experiment],
    say: Callable[[str], None],
) -> tuple[dict[str, Any], GateStudio]:
    """The analyses of an arm's seeds together, and its first seed opened."""
    artefacts: dict[int, dict[str, Any]] = {}
    first: GateStudio | None = None
    permutations = gates_protocol(experiments[cells[0].seed]).permutations
    for cell in cells:
        run = cell_storage(storage, cell.cell_id)
        protocol, result = gates_protocol(experiments[cell.seed]), read_result(run)
        kept = run.child("evaluations")
        found = stored_analysis(kept, protocol, result["checkpoint"]["sha256"]) if result is not None else None
        if found is None or first is None:
            studio = GateStudio(open_checkpoint(run.uri), kept, protocol)
            first = first or studio
            if found is None:
                say(f"{arm.name}, seed {cell.seed}: looking at the gates")
                found = studio.analysis()
        artefacts[cell.seed] = found
    assert first is not None
    return merge_seeds(artefacts, permutations=permutations), first


def _kept(folder: Storage, arm: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """What an earlier call wrote of an arm, where it did."""
    try:
        known = folder.read_json("summary.json")["arms"]
    except FileNotFoundError:
        return []
    return [
        (entry, folder.read_json(entry["page"].replace(".html", ".json"))) for entry in known if entry["arm"] == arm
    ]


def _chosen(study: StudyView, names: Sequence[str]) -> list[ArmView]:
    arms = {arm.name: arm for arm in study.arms}
    for name in names:
        if name not in arms:
            raise ConfigError("no such arm", key="--arm", value=name, choices=list(arms))
    return [arms[name] for name in dict.fromkeys(names)] if names else study.arms


def _page_names(arms: Sequence[str]) -> dict[str, str]:
    """A file name for each arm: its name, with what a file's name should not hold replaced."""
    found: dict[str, str] = {}
    for number, arm in enumerate(arms):
        name = re.sub(r"[^\w.=+-]+", "_", arm).strip("._")[:100] or "arm"
        taken = {"index", "summary", *(used.lower() for used in found.values())}
        found[arm] = name if name.lower() not in taken else f"{name}-{number}"
    return found
