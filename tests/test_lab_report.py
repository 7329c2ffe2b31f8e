"""The lab's report: the same people and prompts every time, pairs, and figures that follow from the records."""

import json

import numpy as np
import pytest
from likeness.face.fetch import fetch_named
from likeness.face.host import STANDALONE, StandaloneHost
from likeness.face.models import catalogue, find, status
from likeness.lab import report, world, writing
from likeness.lab.report import Part, Row, recovered
from likeness.lab.studio import Arm


def row(arm, likeness, consistency):
    return Row(arm, 1, likeness, 0.5, consistency, consistency, {}, 0.1, ((likeness, consistency),))


def test_people_and_prompts_are_the_same_every_time_and_others_for_choosing():
    main, choosing = report.parts()[0], report.selection()
    one, two = report.cast(main), report.cast(main)
    assert one.prompts == two.prompts and all((one.who[t] == two.who[t]).all() for t in world.TRAITS)
    shown = {tuple(person) for person in np.stack(list(one.who.values()), 1)}
    chosen_on = {tuple(person) for person in np.stack(list(report.cast(choosing).who.values()), 1)}
    assert len(shown) == 50 and len(chosen_on) == 10 and not shown & chosen_on


def test_prompts_name_two_or_three_things_that_somebody_can_have():
    here = report.cast(report.parts()[0])
    assert len(here.prompts) == 20
    for row, named in enumerate(here.named):
        assert 2 <= len(named) <= 3
        assert all(world.ATTRIBUTES[name][int(here.what[name][row])] != "none" for name in named)


def test_every_arm_has_a_name_of_its_own():
    for part in [*report.parts(), report.selection()]:
        assert len({arm.name for arm in part.arms}) == len(part.arms)


def test_what_is_recovered_is_the_share_of_what_was_lost():
    plain, cured = Arm("faceid"), Arm("faceid", 1.0, "attention")
    rows = {
        "base": row("base", 0.1, 1.0),
        plain.name: row(plain.name, 0.5, 0.8),
        cured.name: row(cured.name, 0.48, 0.95),
    }
    back, cost = recovered(rows, "faceid", cured.name)
    assert back == pytest.approx(0.75) and cost == pytest.approx(0.04)


def test_rows_are_means_over_people_and_pictures(tmp_path):
    part = Part("main", 2, 2, 1, (Arm(),))
    (tmp_path / "main").mkdir()
    for number, (likeness, right) in enumerate([([0.1, 0.3], [True, False]), ([0.5, 0.7], [True, True])]):
        record = {
            "likeness": likeness, "traits": [[True, None], [False, True]],
            "attributes": [{"hair": right[0]}, {"expression": right[1]}], "diversity": 0.1 * (number + 1),
        }  # fmt: skip
        (tmp_path / "main" / f"{number:03d}.json").write_text(json.dumps({"base": record}))
    found = report.gather(part, tmp_path)["base"]
    assert found.pictures == 4 and found.likeness == pytest.approx(0.4) and found.traits == pytest.approx(2 / 3)
    assert found.consistency == 0.75 and found.placed == 1.0
    assert found.by_attribute == {"hair": 1.0, "expression": 0.5}
    assert found.diversity == pytest.approx(0.15)


def test_an_interval_holds_the_mean():
    low, high = writing.interval([0.2, 0.4, 0.9, 0.5])
    assert low < 0.5 < high


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.timeout(300)
def test_the_quick_report_has_a_table_plots_and_a_sheet(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="the plots need matplotlib: pip install 'comfyui-likeness[lab]'")
    (vocabulary,) = catalogue.select("clip-vocabulary")
    if status(vocabulary, STANDALONE) == "missing":
        pytest.skip("CLIP's vocabulary is not fetched: likeness models fetch clip-vocabulary")
    models = tmp_path / "models"
    fetch_named("lab", StandaloneHost(models))
    (models / "likeness" / vocabulary.file).symlink_to(find(vocabulary, STANDALONE))
    monkeypatch.setenv("LIKENESS_MODELS", str(models))
    writing.report(tmp_path / "work", tmp_path / "out", 1, quick=True)
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| base |" in text and "gives back" in text
    rows = json.loads((tmp_path / "out" / "report.json").read_text())["main"]
    assert rows["faceid 1"]["likeness"] > rows["base"]["likeness"]
    for name in ("sheet.png", "tradeoff.png", "attributes.png"):
        assert (tmp_path / "out" / name).stat().st_size > 1000
