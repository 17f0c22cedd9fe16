"""The tables of a study say what its file of results has, with none, few and all of the rows."""

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from benchmarks.studies.plan import Study, read_study, settings_of
from benchmarks.studies.record import Record
from docs.generate import temperature
from docs.generate.studies import found_table, gain_table, left_table

STUDIES = Path(__file__).resolve().parents[2] / "benchmarks" / "studies"


@pytest.fixture
def schedules() -> Study:
    return read_study(STUDIES / "schedules.toml")


def row(
    study: Study, variant: int, seed: int, perplexities: list[float], cpu_s: float | None = 600.0
) -> dict[str, Any]:
    trial = study.trial(study.variants[variant], seed)
    split = {"perplexity": perplexities[-1]}
    return {
        "variant": trial.variant.name,
        "seed": seed,
        "updates": 3000,
        "validation": [
            {"epoch": epoch, "updates": 1000 * epoch, "perplexity": value}
            for epoch, value in enumerate(perplexities, start=1)
        ],
        "results": {"train": {"valid": split, "test": split}},
        "cpu_s": {"train": cpu_s},
        "settings": settings_of(trial.config, trial.stages),
    }


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def test_no_rows(schedules: Study, tmp_path: Path) -> None:
    lines = found_table(schedules, []).splitlines()[2:]
    assert len(lines) == len(schedules.variants)
    assert all(cells(line)[3] == "0 of 3" and "not run" in line and "nan" not in line for line in lines)
    left = left_table(schedules, Record(tmp_path / "study_schedules.json", schedules))
    assert left.count("not timed") == len(schedules.variants) + 1


def test_means_deviations_and_what_was_reached(schedules: Study) -> None:
    rows = [
        row(schedules, 0, 1, [200.0, 150.0, 130.0]),
        row(schedules, 0, 2, [202.0, 152.0, 131.0]),
        row(schedules, 1, 1, [190.0, 129.0, 120.0], cpu_s=None),
        row(schedules, 2, 1, [210.0, 160.0, 140.0]),
        row(schedules, 3, 1, [190.0, 129.0, 120.0], cpu_s=300.0),
    ]
    found = [cells(line) for line in found_table(schedules, rows).splitlines()]
    head = found[0]
    first, second, third, fourth, fifth = (dict(zip(head, line, strict=True)) for line in found[2:7])
    deviation = statistics.stdev([130.0, 131.0])
    assert first["seeds"] == "2 of 3"
    assert first["valid after epoch 3"] == f"130.50 ± {deviation:.2f}"
    assert first["trained, valid / test"] == f"130.50 ± {deviation:.2f} / 130.50 ± {deviation:.2f}"
    assert first["training, minutes of a core"] == "10"
    reached = "updates to the last of `constant-even`"
    assert first[reached] == "3,000, 10 min"
    assert second[reached] == "2,000"
    assert second["training, minutes of a core"] == "not known"
    assert second["valid after epoch 3"] == "120.00", "one seed has no deviation"
    assert third[reached] == "not reached"
    assert fourth[reached] == "2,000, 3 min"
    assert fifth["seeds"] == "0 of 3"


def test_what_is_left_and_its_hours(schedules: Study, tmp_path: Path) -> None:
    path = tmp_path / "study_schedules.json"
    times = {
        variant.name: {
            "overrides": list(schedules.trial(variant, 1).overrides[:-1]),
            "expected_cpu_s": {"train": 3600.0},
        }
        for variant in schedules.variants
    }
    rows = [row(schedules, 0, seed, [200.0, 150.0, 130.0]) for seed in (1, 3)]
    path.write_text(json.dumps({"rows": rows, "times": times}), encoding="utf-8")
    lines = [cells(line) for line in left_table(schedules, Record(path, schedules)).splitlines() if "`" in line]
    assert lines[0][:3] == ["`constant-even`", "2", "1.0"]
    assert lines[0][3].endswith("--only constant-even --seeds 2`")
    assert lines[1][1:3] == ["1, 2, 3", "3.0"]
    assert lines[-1][2] == f"{3 * len(schedules.variants) - 2:.1f}"

    everything = [
        row(schedules, place, seed, [3.0, 2.0, 1.0]) for place in range(len(schedules.variants)) for seed in (1, 2, 3)
    ]
    path.write_text(json.dumps({"rows": everything, "times": {}}), encoding="utf-8")
    record = Record(path, schedules)
    assert left_table(schedules, record) == "All of it has been run.\n"
    assert "not run" not in found_table(schedules, record.rows())


def test_every_stage_has_a_column() -> None:
    ablation = read_study(STUDIES / "ablation.toml")
    head = cells(found_table(ablation, []).splitlines()[0])
    assert head[-3:] == [f"{stage}, valid / test" for stage in ("trained", "fine-tuned", "dynamic evaluation")]


def test_what_each_stage_brings() -> None:
    ablation = read_study(STUDIES / "ablation.toml")

    def row(variant: str, *perplexities: float, minutes: float | None) -> dict[str, object]:
        stages = zip(("train", "finetune", "dynamic"), perplexities, strict=True)
        results = {stage: {"valid": {"perplexity": value}} for stage, value in stages}
        return {
            "variant": variant,
            "results": results,
            "cpu_s": {"dynamic-eval": None if minutes is None else 60 * minutes},
        }

    rows = [
        row("softmax", 100.0, 100.0, 90.0, minutes=None),
        row("mos-k2", 98.0, 96.0, 80.0, minutes=10.0),
        row("mos-k2", 100.0, 99.0, 82.0, minutes=14.0),
    ]
    lines = [cells(line) for line in gain_table(ablation, rows).splitlines()[2:]]
    assert lines == [
        ["mixture of softmaxes, K=2", "5", "99.0", "1.5", "16.5", "12"],
        ["one softmax", "7", "100.0", "none", "10.0", "not known"],
    ]


def test_what_a_temperature_brings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temperature, "read_results", dict)
    assert temperature.temperature_table() == f"Not run yet: `{temperature.COMMAND}`.\n"
    found = {
        name: {
            "stage": stage,
            "temperature": at,
            "test_perplexity": {"untempered": 100.0, "tempered": 100.0 - gain},
            "test_gain_nats": gain / 100,
        }
        for name, stage, at, gain in (("a", "train", 1.0525, 2.0), ("b", "finetune", 0.998, -1.0))
    }
    monkeypatch.setattr(temperature, "read_results", lambda: {temperature.FILE: {"results": found}})
    lines = temperature.temperature_table().splitlines()
    assert cells(lines[2]) == ["`a`", "trained", "1.0525", "100.00", "98.00", "0.0200"]
    assert cells(lines[3]) == ["`b`", "fine-tuned", "0.998", "100.00", "101.00", "-0.0100"]
    assert lines[-1].startswith("Of 2 runs: 0.0050 nats on average, from -0.0100 to 0.0200. ")
