"""The notebooks: their anatomy, that each runs from top to bottom, and that pictures show the masks of the cells."""

import ast
import os
import re
import statistics
from concurrent.futures import ThreadPoolExecutor

import nbformat
import pandas as pd
import pytest
import torch

from lib import audit, execution, experiment, notebook, pruning, sweep, tables
from lib.profile import DRAWN, NOTEBOOKS, Profile, load, outputs
from lib.scorers import SCORERS
from lib.scorers.common import weights
from lib.store import Store
from tests import nets

TINY = dict(profile="tiny", pairs={"digits/cnn": 1}, compressions=[1, 4], further_compressions=[], seeds=[42],
            learning_rate=1e-3, text_learning_rate=None, width=0.2, train_images=256, obd_images=32, audit=["digits/cnn"])
LONE = "05_synflow"   # computes its own cells, and runs in another folder than the others


def read(name):
    return nbformat.read(execution.FOLDER / f"{name}.ipynb", as_version=4)


def code(name):
    return [cell for cell in read(name).cells if cell.cell_type == "code"]


def text(name):
    return "\n".join(cell.source for cell in read(name).cells if cell.cell_type == "markdown")


def test_every_notebook_of_the_folder_is_known():
    assert {path.stem for path in execution.FOLDER.glob("*.ipynb")} == set(NOTEBOOKS)


# ---- anatomy

@pytest.mark.parametrize("name", NOTEBOOKS)
def test_parameters_are_the_quick_profile_one_commented_literal_a_line(name):
    execution.check(name)   # the tag, the names, the kernel
    cell = next(cell for cell in code(name) if "parameters" in cell.metadata.get("tags", ()))
    values = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(cell.source).body}
    assert values == load("quick").model_dump() and list(values) == list(Profile.model_fields)
    assert all(re.fullmatch(r"\w+ = .+  # .+", line) for line in cell.source.splitlines())


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_no_output_is_stored(name):
    assert all(not cell.outputs and cell.execution_count is None for cell in code(name))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_cells_are_short_and_text_stands_beside_code(name):
    lengths = [len(cell.source.splitlines()) for cell in code(name)]
    texts = sum(cell.cell_type == "markdown" for cell in read(name).cells)
    assert statistics.median(lengths) <= 5 and max(lengths) <= 12
    assert 0.7 <= texts / len(lengths) <= 1.3


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_links_lead_somewhere_and_the_neighbours_are_linked(name):
    links = set(re.findall(r"\]\((?!http)([^)#]+)", text(name)))
    for link in links:
        assert (execution.FOLDER / link).is_file(), link
    here = list(NOTEBOOKS).index(name)
    beside = [other for index, other in enumerate(NOTEBOOKS) if abs(index - here) == 1]
    assert {"../README.md", *(f"{other}.ipynb" for other in beside)} <= links


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_badge_cost_references_and_provenance_are_there(name):
    first, whole = read(name).cells[0].source, text(name)
    assert first.startswith("# ") and "| quick |" in first
    assert f"OWNER/REPO/HEAD?labpath=notebooks/{name}.ipynb" in first
    last = re.findall("^## (Limits|References|Provenance)", whole, re.MULTILINE)
    assert last == ["Limits", "References", "Provenance"]


@pytest.mark.parametrize("name", [name for name in NOTEBOOKS if name not in DRAWN])
def test_every_scorer_of_its_methods_is_called(name):
    source = "\n".join(cell.source for cell in code(name))
    called = set(re.findall(r'SCORERS\["(\w+)"\]', source))
    module = {"02_obd": {"obd"}, "03_lap_lamp": {"lap", "lap_run", "lamp"}, "05_synflow": {"synflow"},
              "04_snip_grasp": {"snip", "snip_written", "grasp", "grasp_run"},
              "01_baselines": {"random", "magnitude", "gradient", "activation", "activation_run"}}[name]
    assert module <= called


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_nothing_is_drawn_from_a_generator_without_a_seed(name):
    draws = re.compile(r"torch\.(rand|bernoulli|normal|multinomial)|np\.random|import random|\.(uniform|normal)_\(")
    for cell in code(name):
        assert not draws.search(cell.source) or "manual_seed" in cell.source


# ---- execution

@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """Name -> outcome of every notebook in a tiny profile, and the folder of its results."""
    folder = tmp_path_factory.mktemp("outputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORESIGHT_OUTPUTS", str(folder))
        patch.setenv("FORESIGHT_WORKERS", "1")
        patch.delenv("MPLBACKEND", raising=False)
        grid = Profile(**TINY)
        store = Store(outputs("tiny") / "results.jsonl")
        others = set(grid.cells()) - set(grid.cells(list(NOTEBOOKS[LONE])))
        with ThreadPoolExecutor(1) as here:
            assert not sweep.run(others, store, executor=here, say=lambda line: None)
            studies = [study for study in audit.studies(grid) if study.method not in ("OBD", "SynFlow")]   # some are missing
            assert not sweep.run(studies, audit.store_of(grid), executor=here, say=lambda line: None, work=audit.run)
        (folder / "tiny" / "notebooks").mkdir()
        patch.setenv("PYTHONPATH", str(execution.ROOT))
        patch.chdir(folder)
        outcomes = [execution.execute(LONE, grid)]
        patch.delenv("PYTHONPATH")   # from notebooks/, lib is found without it
        rest = [(name, grid) for name in NOTEBOOKS if name != LONE]
        execution.execute_all(rest, workers=2, finished=outcomes.append)
    return {outcome.name: outcome for outcome in outcomes}, folder / "tiny"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_runs_from_top_to_bottom(executed, name):
    assert executed[0][name].problem is None


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_its_output_is_clean(executed, name):
    shown = nbformat.read(executed[1] / "notebooks" / f"{name}.ipynb", as_version=4)
    outputs_of = [output for cell in shown.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output.text for output in outputs_of if output.output_type == "stream" and output.name == "stderr"]
    assert any("stand-in" in str(output) for output in outputs_of)


@pytest.mark.parametrize("name", [name for name in NOTEBOOKS if name != "06_results"])
def test_figures_and_tables_come_in_all_their_formats(executed, name):
    for kind, formats in (("figures", {".pdf", ".svg", ".png", ".csv"}), ("tables", {".csv", ".md", ".tex"})):
        made = [path for path in (executed[1] / kind).iterdir() if path.name.startswith(name[:2])]
        stems = {path.stem for path in made}
        assert len(stems) >= 4
        assert {(path.stem, path.suffix) for path in made} == {(stem, suffix) for stem in stems for suffix in formats}


# ---- lib.notebook

@pytest.fixture(scope="module")
def example():
    return notebook.Example(Profile(**TINY), "digits/cnn", 0.2)


@pytest.mark.parametrize("method", ["Random", "Random@run", "LayerMag", "GlobalGrad@run", "OBD", "SNIP", "GraSP@run",
                                    "SynFlow"])
def test_pictures_show_the_masks_of_the_cells(example, method):
    cell = next(cell for cell in Profile(**TINY).cells([method]) if cell.method == method)
    masks = experiment.masks_of(cell, experiment.network(cell, example.images), example.images)
    assert pruning.digest(example.masks(method, [4])[4]) == pruning.digest(masks)


@pytest.mark.parametrize("method", ["GlobalGrad", "OBD", "SNIP", "GraSP"])
def test_setting_scores_as_the_method_does(example, method):
    score = {"GlobalGrad": "gradient", "OBD": "obd", "SNIP": "snip", "GraSP": "grasp"}[method]
    scores = SCORERS[score](*example.setting(method))
    assert all(torch.equal(scores[name], score) for name, score in example.scores(method).items())


def test_setting_of_a_network_with_dropout_leaves_it_off():
    vgg = notebook.Example(Profile(**TINY | {"pairs": {"shapes10/vgg16": 1}, "audit": []}), "shapes10/vgg16", 0.05)
    model, *_ = vgg.setting("GlobalGrad")
    assert {module.training for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {False}


def test_unreachable_ratios_are_left_out_and_said(example, capsys):
    assert example.ratios == [4, 16] and "64 is out of reach" in capsys.readouterr().out


def test_cut_is_the_lowest_score_kept_of_any_layer():
    scores = {"a": torch.tensor([-3.0, 1.0]), "b": torch.tensor([2.0, -0.5])}
    kept = {4: {"a": torch.tensor([True, False]), "b": torch.tensor([True, False])}}
    assert notebook.cuts(scores, kept) == {"a": {4: -3.0}, "b": {4: -3.0}}
    assert notebook.cuts(scores, kept, two_sided=True) == {"a": {4: 2.0}, "b": {4: 2.0}}


@pytest.mark.parametrize("name", nets.NETS)
def test_hessian_diagonal_is_that_of_the_explicit_hessian(name):
    net = nets.make(name)
    images, targets = nets.batch(net)
    names = list(weights(net))
    explicit, _ = nets.hessian(net, images, targets, names)
    assert torch.allclose(nets.flat(notebook.hessian_diagonal(net, images, targets), names), explicit.diagonal())


@pytest.mark.parametrize("sign", [1, -1])
def test_shrinking_what_grasp_scores_low_raises_the_gradient_flow_as_its_first_order_says(example, sign):
    model, inputs, targets = example.setting("GraSP")
    scores = {name: sign * score for name, score in SCORERS["grasp"](model, inputs, targets).items()}
    masks = example.best(scores, [1.001])[1.001]
    expected = -2 * 1e-7 * sum(sign * float(scores[name][~mask].sum()) for name, mask in masks.items())
    shrunk = notebook.scaled(model, masks, 1 - 1e-7)
    before, after = (notebook.gradient_flow(net, inputs, targets) for net in (model, shrunk))
    assert sign * expected > 0 and after - before == pytest.approx(expected, rel=1e-3)


def test_unknown_value_of_a_parameter_names_it(tmp_path, monkeypatch):
    monkeypatch.setenv("FORESIGHT_OUTPUTS", str(tmp_path))
    with pytest.raises(ValueError, match="digits/nothing"):
        notebook.Chapter("02_obd", TINY | {"pairs": {"digits/nothing": 1}})


def test_cells_that_fail_or_cannot_be_reached_do_not_stop_the_others(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FORESIGHT_OUTPUTS", str(tmp_path))
    monkeypatch.setattr(sweep, "run", lambda cells, store, workers=None: [f"{len(cells)} cells: broke"])
    chapter = notebook.Chapter("02_obd", TINY | {"compressions": [1, 4, 64]})
    assert len(chapter.results()) == len(chapter.cells) == 5
    said = capsys.readouterr().out
    assert "FAILED 3 cells: broke" in said and said.count("64 is out of reach") == 1 and os.listdir(tmp_path) == []


def test_a_share_below_a_tenth_of_a_percent_keeps_two_digits():
    assert [notebook.percent(share) for share in (0, 0.000412, 0.0123, 1)] == ["0.0 %", "0.041 %", "1.2 %", "100.0 %"]


def test_an_audit_says_in_how_many_seeds_a_layer_is_empty_and_no_path_is_left():
    rows = pd.DataFrame({"done": [True] * 3 + [False], "compression_achieved": [8.0, 8.0, 8.3, 99.0],
                         "empty_layers": [7, 0, 2, 9], "collapsed": [True, False, False, True]})
    assert notebook._audited(rows) == "8.10; empty 2/3; no path 1/3"
    assert notebook._audited(rows[1:2]) == "8.00" and notebook._audited(rows[3:]) == tables.DASH
