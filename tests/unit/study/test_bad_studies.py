"""Wrong study files: each is refused before anything starts, with a message that says file, key, value and choices."""

from __future__ import annotations

from pathlib import Path

import pytest

from simlap.config import yaml
from simlap.errors import ConfigError
from simlap.study.spec import load_study
from tests.tiny import TREE

GOOD = """
name: good
base: base.yaml
factors:
  filter: {path: method.gate, levels: {on: {kind: gumbel}, off: {kind: open}}}
  noise: {path: method.gate.noise, levels: [logistic, gumbel], when: {filter: on}}
  lr: {path: optim.lr, sample: {low: 1e-3, high: 1e-1, scale: log, n: 3}}
  dim: {path: method.embed_dim, levels: [16, 32, 64]}
  hidden: {path: method.projector_hidden_dim, levels: [16, 32, 64]}
zip: [[dim, hidden]]
baseline: {filter: on, noise: logistic, lr: 1e-2, dim: 16, hidden: 16}
exclude: [{filter: off, dim: 64}]
protect: [{lr: 1e-1}]
seeds: 2
"""
TWO = """
name: two
base: base.yaml
design: fractional
resolution: 3
factors:
  filter: {path: method.gate, levels: {on: {kind: gumbel}, off: {kind: open}}}
  pairs: {path: method.pairs, levels: [arbitrary, identical]}
  lr: {path: optim.lr, levels: [1e-3, 1e-2]}
  dim: {path: method.embed_dim, levels: [16, 32]}
baseline: {filter: on, pairs: arbitrary, lr: 1e-3, dim: 16}
"""
NOISE = "when: {filter: on}"
SAMPLE = "{low: 1e-3, high: 1e-1, scale: log, n: 3}"
BASELINE = "{filter: on, noise: logistic, lr: 1e-2, dim: 16, hidden: 16}"
LR = "lr: {path: optim.lr, sample: " + SAMPLE + "}"
JOINT = (
    "lr: {path: optim.lr, sample: {low: 1e-3, high: 1e-1, n: 3, how: random}}\n"
    "  decay: {path: optim.weight_decay, sample: {low: 0, high: 1, n: 4, how: random}}"
)
DIMS = GOOD[GOOD.index("dim: {") : GOOD.index("zip:")]
SEEDS = "seeds: 2"
DECAY = "decay: {path: optim.weight_decay, range: {low: 0, high: 1}}"

BAD: dict[str, tuple[str, str, str, list[str]]] = {
    # what is wrong: (file, old, new, parts of the message after the file's name)
    "tab": (GOOD, "seeds: 2", "seeds:\t2\n\tname: x", ["not valid YAML: line 15, column 1: found a tab character"]),
    "key given twice": (GOOD, "seeds: 2", "seeds: 2\nseeds: 3", ["not valid YAML: line 15", "key 'seeds' is given twice"]),
    "not a mapping": (GOOD, GOOD, "- a\n- b\n", ["must hold a mapping of keys to values, not list"]),
    "unknown key": (GOOD, "exclude:", "exclud:", ["exclud: unknown key; did you mean 'exclude'? Valid:", "generators"]),
    "unknown key of a factor": (GOOD, "when:", "whenn:", ["factors.noise.whenn: unknown key; did you mean 'when'?"]),
    "wrong type": (
        GOOD, SEEDS, "seeds: many",
        ["seeds: must be how many (a whole number, 1 or more), or a list", "(got 'many')"],
    ),
    "no name": (GOOD, "name: good\n", "", ["name: is required"]),
    "name of two folders": (GOOD, "name: good", "name: a/b", ["name: must be a folder's name", "(got 'a/b')"]),
    "base missing": (GOOD, "base: base.yaml", "base: bse.yaml", ["bse.yaml: no such file", "base.yaml"]),
    "set into nothing": (GOOD, SEEDS, "set: {optim.lrr: 1}", ["set: optim.lrr: no key 'lrr' in optim", "did you mean 'lr'?"]),
    "no factors": (TWO, TWO[TWO.index("factors") : TWO.index("baseline")], "factors: {}\n", ["factors: ", "at least 1 item"]),
    "path into nothing": (
        GOOD, "method.embed_dim", "method.embed_dims", ["dim.levels.16: method.embed_dims: no key", "did you mean 'embed_dim'?"],
    ),
    "path through a value": (
        GOOD, "optim.lr,", "optim.lr.x,",
        ["factors.lr.levels.0.001: optim.lr.x: no key 'x'", "plain value"],
    ),
    "level of a wrong type": (
        GOOD, "[16, 32, 64]}\n  hid", "[16, wide, 64]}\n  hid",
        ["dim.levels.wide", "method.embed_dim", "'wide'"],
    ),
    "level of a wrong kind": (
        GOOD, "kind: open", "kind: opn",
        ["off: method.gate.kind", "'opn'", "did you mean 'open'?", "sigmoid"],
    ),
    "empty levels": (GOOD, "[logistic, gumbel]", "[]", ["factors.noise.levels: ", "at least 1 item"]),
    "duplicate level": (TWO, "[16, 32]", "[16, 16]", ["factors.dim.levels: a level is given twice (got '16')"]),
    "the word for no level": (
        TWO, "[arbitrary, identical]", "[arbitrary, –]",
        ["factors.pairs.levels: stands for a factor that"],
    ),
    "neither levels nor sample": (TWO, ", levels: [16, 32]", "", ["factors.dim.levels: is required, or a sample"]),
    "levels and sample": (
        GOOD, "sample: ", "levels: [1e-2], sample: ",
        ["factors.lr.sample: cannot be given together with levels"],
    ),
    "factor over seeds": (
        GOOD, "path: optim.lr", "path: seed",
        ["factors.lr.path: cannot be a factor: the study's `seeds` vary it"],
    ),
    "factor over evaluation": (
        TWO, "path: optim.lr", "path: evaluate.0.k",
        ["factors.lr.path: cannot be a factor", "evaluation"],
    ),
    "two factors at one place": (
        TWO, "method.pairs", "method.gate.kind",
        ["pairs.path: changes the same place as factors.filter.path"],
    ),
    "baseline missing": (TWO, "baseline: {filter: on, pairs: arbitrary, lr: 1e-3, dim: 16}", "", ["baseline: is required"]),
    "baseline without a factor": (
        GOOD, ", lr: 1e-2,", ",",
        ["baseline: must name one level of every factor; there is none of lr"],
    ),
    "baseline of an unknown factor": (
        GOOD, "{filter: on,", "{filtr: on,",
        ["baseline: no such factor (got 'filtr'); did you mean 'filter'?"],
    ),
    "baseline of an unknown level": (
        GOOD, "{filter: on,", "{filter: onn,",
        ["baseline.filter: no such level (got 'onn'); did you mean 'on'?"],
    ),
    "baseline out of range": (
        GOOD, "lr: 1e-2,", "lr: 1,",
        ["baseline.lr: must be a number from 0.001 to 0.1", "factors.lr.sample (got 1)"],
    ),
    "baseline of zipped factors": (
        GOOD, "hidden: 16}", "hidden: 32}",
        ["baseline: levels of dim+hidden", "do not go together", "dim=16 hidden=16"],
    ),
    "claim of an unknown factor": (
        TWO, "resolution: 3", "resolution: 3\nclaims: [baseline > flter=off]",
        ["claims.0: `baseline > flter=off`: no such factor (got 'flter'); did you mean 'filter'? Valid: filter, pairs"],
    ),
    "claim about an arm that the design has not": (
        TWO, "resolution: 3", "resolution: 3\nclaims: [baseline > filter=off]",
        ["claims.0: `baseline > filter=off`: the study has no such arm", "(got 'filter=off')", "Valid: filter=off"],
    ),
    "claim that is no claim": (
        TWO, "resolution: 3", "resolution: 3\nclaims: [filter=off is worse]",
        ["claims.0: `filter=off is worse`: expected <, > or ~", "it is written like `filter=off < filter=on by 0.01"],
    ),
    "claim with one seed": (
        GOOD, SEEDS, "seeds: 1\nclaims: [dim=32 hidden=32 > baseline]",
        ["seeds: no claim can be tested with one seed"],
    ),
    "declared epoch beyond the end": (
        GOOD, SEEDS, "seeds: 2\ncompare: {epoch: 9}", ["compare.epoch: is beyond the last epoch of arm", ", 3 (got 9)"],
    ),
    "declared rule of a race": (
        GOOD, SEEDS, "seeds: 4\nscheduler: {kind: race}\ncompare: last",
        ["compare: a race has its own: it compares at its looks (got 'last')"],
    ),
    "margin of a race": (
        GOOD, SEEDS, "seeds: 4\nscheduler: {kind: race}\nmargin: 0.01",
        ["margin: a race has its own: write scheduler.margin (got 0.01)"],
    ),
    "everything excluded": (GOOD, "{filter: off, dim: 64}", "{}", ["baseline is not among the arms: exclude.0 leaves it out"]),
    "exclude of an unknown level": (
        GOOD, "{filter: off, dim", "{filter: of, dim",
        ["exclude.0.filter: no such level (got 'of'); did you mean 'off'?"],
    ),
    "exclude of nothing": (
        GOOD, "{filter: off, dim: 64}", "{dim: 64, hidden: 16}",
        ["exclude.0: matches no arm (got 'dim=64 hidden=16')"],
    ),
    "protect of nothing": (
        GOOD, "[{lr: 1e-1}]", "[{filter: off, noise: gumbel}]",
        ["protect.0: matches no arm", "... (24 arms)"],
    ),
    "when on an unknown factor": (
        GOOD, NOISE, "when: {filtr: on}",
        ["factors.noise.when: no such factor (got 'filtr'); did you mean 'filter'?"],
    ),
    "when on an unknown level": (
        GOOD, NOISE, "when: {filter: [on, onn]}",
        ["factors.noise.when.filter: no such level (got 'onn')", "Valid: on, off."],
    ),
    "when never": (
        GOOD, NOISE, "when: {filter: []}",
        ["factors.noise.when.filter: an empty list means that the factor never exists"],
    ),
    "when of itself": (
        GOOD, NOISE, "when: {noise: gumbel}",
        ["factors.noise.when: a factor cannot depend on itself: noise -> noise"],
    ),
    "when in a circle": (
        GOOD, "off: {kind: open}}}", "off: {kind: open}}, when: {noise: gumbel}}",
        ["when: a factor cannot depend on itself: ", "filter -> noise"],
    ),
    "zip of unequal lengths": (
        GOOD, "[16, 32, 64]}\n  hid", "[16, 32]}\n  hid",
        ["zip.0: zipped factors have equally many levels; dim has 2, hidden has 3"],
    ),
    "zip of an unknown factor": (
        GOOD, "[[dim, hidden]]", "[[dim, hiden]]",
        ["zip.0: no such factor (got 'hiden'); did you mean 'hidden'?"],
    ),
    "zip of one factor": (GOOD, "[[dim, hidden]]", "[[dim]]", ["zip.0: names two or more different factors (got ['dim'])"]),
    "factor in two zips": (
        GOOD, "[[dim, hidden]]", "[[dim, hidden], [hidden, filter]]",
        ["zip.1: goes together with others already (zip) (got 'hidden')"],
    ),
    "zip of the same pairs": (
        GOOD, DIMS, DIMS.replace("32", "16"),
        ["zip.0: the same levels come twice (dim: 16, hidden: 16)"],
    ),
    "low above high": (GOOD, "low: 1e-3", "low: 1", ["factors.lr.sample.low: must be less than high (0.1) (got 1.0)"]),
    "logarithm of 0": (
        GOOD, "low: 1e-3", "low: 0",
        ["factors.lr.sample.low: must be greater than 0 with scale: log (got 0.0)"],
    ),
    "n missing": (GOOD, ", n: 3}", ", how: random}", ["factors.lr.sample.n: is required"]),
    "too few whole numbers": (
        GOOD, SAMPLE, "{low: 1, high: 3, n: 9, type: int}",
        ["factors.lr.sample.n: is more than there are different levels"],
    ),
    "unknown sampler": (GOOD, ", n: 3}", ", n: 3, how: sobol}", ["factors.lr.sample.how: ", "'sobol'", "latin_hypercube"]),
    "sampled together, of other length": (
        GOOD, LR, JOINT,
        ["factors.decay.sample.n: must be that of factors.lr.sample", "(got 4)"],
    ),
    "unknown design": (GOOD, SEEDS, "design: full", ["design: ", "(got 'full')", "factorial", "fractional", "one_at_a_time"]),
    "list without arms": (GOOD, SEEDS, "design: list", ["arms: is required with design: list"]),
    "arms with factorial": (GOOD, SEEDS, "arms: [{filter: off}]", ["arms: is for design: list only"]),
    "arm twice": (GOOD, SEEDS, "design: list\narms: [{}, {filter: on}]", ["arms.1: is the same as arms.0"]),
    "generators with factorial": (GOOD, SEEDS, "generators: [a = b*c]", ["generators: is for design: fractional only"]),
    "fractional without a size": (
        TWO, "resolution: 3\n", "",
        ["design: fractional needs one of resolution, runs and generators; none is given"],
    ),
    "fractional with two sizes": (
        TWO, "resolution: 3", "resolution: 3\nruns: 8",
        ["fractional needs one of", "not resolution and runs"],
    ),
    "fractional of three levels": (
        TWO, "[16, 32]", "[16, 32, 64]",
        ["design: fractional needs two levels of every factor; dim has 3"],
    ),
    "fractional with a condition": (
        TWO, "[16, 32]}", "[16, 32], when: {filter: on}}",
        ["factors.dim.when: fractional needs every factor in every arm"],
    ),
    "resolution 2": (TWO, "resolution: 3", "resolution: 2", ["resolution: ", "(got 2)", "Valid: 3, 4, 5."]),
    "no such resolution": (
        TWO, "resolution: 3", "resolution: 5",
        ["resolution: no standard fraction of 4", "(got 5)", "Valid: 8 arms with resolution 4."],
    ),
    "no such runs": (
        TWO, "resolution: 3", "runs: 12",
        ["runs: no standard fraction of 4 two-level factors has so many arms (got 12)", "Valid: 8 arms"],
    ),
    "no generators": (TWO, "resolution: 3", "generators: []", ["generators: ", "at least 1 item"]),
    "generator of an unknown factor": (
        TWO, "resolution: 3", "generators: [dim = filter*pair*lr]",
        ["generators.0: no such factor (got 'pair'); did you mean 'pairs'?"],
    ),
    "generator with a sign": (
        TWO, "resolution: 3", "generators: [dim = -filter*pairs]",
        ["generators.0: has no sign: that fraction is taken which"],
    ),
    "generator of one factor": (
        TWO, "resolution: 3", "generators: [dim = lr]",
        ["generators.0: makes a design of resolution 2"],
    ),
    "generators of one word": (
        TWO, "resolution: 3", "generators: [dim = lr*pairs, filter = pairs*lr]", ["generators.1: repeats the word of dim"],
    ),
    "leave_one_out of three levels": (
        GOOD, SEEDS, "design: leave_one_out",
        ["design: leave_one_out needs two levels of every factor; lr has 3"],
    ),
    "seeds repeated": (GOOD, SEEDS, "seeds: [0, 1, 1]", ["seeds: must be distinct, and at least one (got [0, 1, 1])"]),
    "no seeds": (GOOD, SEEDS, "seeds: 0", ["seeds: ", "(got 0)"]),
    "too few seeds for a race": (
        GOOD, SEEDS, "seeds: 2\nscheduler: {kind: race}",
        ["seeds: race looks at 4 seeds first", "(got 2)"],
    ),
    "metric not computed": (
        GOOD, SEEDS, "metric: {name: val/knn}",
        ["metric.name: not a metric", "did you mean 'val/knn_top1'?"],
    ),
    "test set decides": (GOOD, SEEDS, "metric: {name: test/probe_top1}", ["metric.name: the test set never decides"]),
    "report not computed": (
        GOOD, SEEDS, "metric: {report: test/linear_top1}",
        ["metric.report: not a metric", "test/probe_top1"],
    ),
    "rung not measured": (
        GOOD, SEEDS, "scheduler: {kind: asha, grace_epochs: 1}\nmetric: {name: val/knn_top1}",
        ["metric.name: is not measured at the epochs at which asha decides (1)", "every_epochs"],
    ),
    "unknown scheduler": (GOOD, SEEDS, "scheduler: {kind: ahsa}", ["scheduler.kind: ", "(got 'ahsa'); did you mean 'asha'?"]),
    "scheduler without a kind": (GOOD, SEEDS, "scheduler: {grace_epochs: 1}", ["scheduler: needs the key 'kind'"]),
    "search of nothing": (GOOD, SEEDS, "search: {factors: {}}", ["search.factors: ", "at least 1 item"]),
    "search without factors": (GOOD, SEEDS, "search: {trials: 3}", ["search.factors: is required"]),
    "search without trials": (GOOD, SEEDS, f"search: {{factors: {{{DECAY}}}, trials: 0}}", ["search.trials: ", "(got 0)"]),
    "search with an empty batch": (GOOD, SEEDS, f"search: {{factors: {{{DECAY}}}, batch: 0}}", ["search.batch: ", "(got 0)"]),
    "search by an unknown sampler": (
        GOOD, SEEDS, f"search: {{factors: {{{DECAY}}}, sampler: cma}}",
        ["search.sampler: ", "(got 'cma')", "Valid: tpe, random."],
    ),
    "search per seed": (
        GOOD, SEEDS, f"search: {{factors: {{{DECAY}}}, per: seed}}",
        ["search.per: ", "(got 'seed')", "Valid: arm, study."],
    ),
    "search with an unknown key": (
        GOOD, SEEDS, f"search: {{factors: {{{DECAY}}}, trails: 9}}",
        ["search.trails: unknown key; did you mean 'trials'?"],
    ),
    "search of a place that is compared": (
        GOOD, SEEDS, "search: {factors: {rate: {path: optim.lr, range: {low: 1e-3, high: 1}}}}",
        ["search.factors.rate.path: cannot be searched for and compared at once: factors.lr.path is the same place"],
    ),
    "search by the name of a factor": (
        GOOD, SEEDS, "search: {factors: {lr: {path: optim.weight_decay, range: {low: 0, high: 1}}}}",
        ["search.factors.lr: is the name of a factor that is compared"],
    ),
    "search around a factor": (
        GOOD, SEEDS, "search: {factors: {gates: {path: method, levels: [{kind: supcon}, {kind: simclr}]}}}",
        ["search.factors.gates.path: lies around factors.filter.path (method.gate), whose value would be lost"],
    ),
    "search of one place twice": (
        GOOD, SEEDS, f"search: {{factors: {{{DECAY}, again: {{path: optim.weight_decay, levels: [0, 1]}}}}}}",
        ["path: is the same place as search.factors."],
    ),
    "search of an unknown place": (
        GOOD, SEEDS, f"search: {{factors: {{{DECAY.replace('weight_decay', 'weight_decays')}}}}}",
        ["search of arm filter=on", "optim.weight_decays: no key", "did you mean 'weight_decay'?"],
    ),
    "search of seeds": (
        GOOD, SEEDS, "search: {factors: {x: {path: seed, levels: [1, 2]}}}",
        ["search.factors.x.path: cannot be searched for: the study's `seeds` vary it"],
    ),
    "search of the evaluation": (
        GOOD, SEEDS, "search: {factors: {x: {path: evaluate.0.k, levels: [1, 2]}}}",
        ["search.factors.x.path: cannot be searched for", "evaluation"],
    ),
    "search of epochs beside its epochs": (
        GOOD, SEEDS, "search: {factors: {x: {path: train.epochs, levels: [1, 2]}}, epochs: 2}",
        ["search.factors.x.path: cannot be searched for beside search.epochs"],
    ),
    "search for fewer epochs than the warm-up": (
        GOOD.replace("base: base.yaml", "base: base.yaml\nset: {optim.warmup_epochs: 3}"), SEEDS,
        f"search: {{factors: {{{DECAY}}}, epochs: 2}}",
        ["search.epochs of arm filter=on", "warmup_epochs"],
    ),
    "search with neither range nor levels": (
        GOOD, SEEDS, "search: {factors: {x: {path: optim.weight_decay}}}",
        ["search.factors.x.range: is required, or levels"],
    ),
    "search with range and levels": (
        GOOD, SEEDS, "search: {factors: {x: {path: optim.weight_decay, levels: [0, 1], range: {low: 0, high: 1}}}}",
        ["search.factors.x.levels: cannot be given together with a range"],
    ),
    "search among one level": (
        GOOD, SEEDS, "search: {factors: {x: {path: optim.weight_decay, levels: [0]}}}",
        ["search.factors.x.levels: ", "at least 2 items"],
    ),
    "search among equal levels": (
        GOOD, SEEDS, "search: {factors: {x: {path: optim.weight_decay, levels: [0, 0]}}}",
        ["search.factors.x.levels: has a level twice"],
    ),
    "search in an empty range": (
        GOOD, SEEDS, "search: {factors: {x: {path: optim.weight_decay, range: {low: 1, high: 1}}}}",
        ["search.factors.x.range.low: must be less than high (1.0) (got 1.0)"],
    ),
    "search on a logarithm of 0": (
        GOOD, SEEDS, "search: {factors: {x: {path: optim.weight_decay, range: {low: 0, high: 1, scale: log}}}}",
        ["search.factors.x.range.low: must be greater than 0 with scale: log"],
    ),
    "search beyond what a place takes": (
        GOOD, SEEDS, "search: {factors: {x: {path: optim.weight_decay, range: {low: -1, high: 1}}}}",
        ["search of arm filter=on", "(x=-1.0)", "optim.weight_decay", "(got -1.0)"],
    ),
    "search where no arm is": (
        GOOD, SEEDS, f"search: {{factors: {{{DECAY[:-1]}, when: {{filter: [off], noise: gumbel}}}}}}}}",
        ["search.factors.decay.when: matches no arm"],
    ),
    "search beside an unknown factor": (
        GOOD, SEEDS, f"search: {{factors: {{{DECAY[:-1]}, when: {{filtr: on}}}}}}}}",
        ["search.factors.decay.when: no such factor (got 'filtr'); did you mean 'filter'?"],
    ),
    "search beside an unknown level": (
        GOOD, SEEDS, f"search: {{factors: {{{DECAY[:-1]}, when: {{filter: onn}}}}}}}}",
        ["search.factors.decay.when.filter: no such level (got 'onn'); did you mean 'on'?"],
    ),
    "search never": (
        GOOD, SEEDS, f"search: {{factors: {{{DECAY[:-1]}, when: {{filter: []}}}}}}}}",
        ["search.factors.decay.when.filter: an empty list means that it is never searched for"],
    ),
    "search per study without the baseline": (
        GOOD, SEEDS, f"search: {{factors: {{{DECAY[:-1]}, when: {{filter: off}}}}}}, per: study}}",
        ["search.factors.decay.when: leaves out the baseline, which alone is searched with per: study"],
    ),
    "resources of nothing": (GOOD, SEEDS, "resources: {workers: 0}", ["resources.workers: ", "(got 0)"]),
}  # fmt: skip


def write(folder: Path, text: str) -> Path:
    (folder / "base.yaml").write_text(yaml.dump(TREE))
    path = folder / "study.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("text", [GOOD, TWO])
def test_the_files_are_good_without_the_mistakes(tmp_path: Path, text: str) -> None:
    assert len(load_study(write(tmp_path, text)).arms) == {GOOD: 24, TWO: 8}[text]


def test_a_search_is_good_without_the_mistakes(tmp_path: Path) -> None:
    text = GOOD + f"search: {{factors: {{{DECAY[:-1]}, when: {{filter: on}}}}}}, epochs: 2}}\n"
    assert load_study(write(tmp_path, text)).tuner is not None


@pytest.mark.parametrize("what", BAD)
def test_a_bad_study_is_refused(tmp_path: Path, what: str) -> None:
    text, old, new, parts = BAD[what]
    assert text.count(old) >= 1
    path = write(tmp_path, text.replace(old, new, 1))
    with pytest.raises(ConfigError) as raised:
        load_study(path)
    message = str(raised.value)
    assert str(tmp_path) in message, "the file is named"
    for part in parts:
        assert part in message
