"""The runner, on tiny notebooks: what it refuses, what it survives, and what it leaves behind."""

import dataclasses
import errno
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from unittest import mock

import nbformat
import pandas as pd
import pytest
import torch
import yaml
from filelock import FileLock
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from lib import UserError, data, estimate, execution, figures, manifest, pages, profile, run, sweep, tables
from lib.experiment import Cell

FIELDS = dict(profile="tiny", pairs={"digits/cnn": 0}, compressions=[1, 4], further_compressions=[], seeds=[1],
              learning_rate=0.001, text_learning_rate=None, width=0.125, train_images=64, obd_images=16, audit=[])


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A house of its own: notebooks that need no cell, written by `notebook`, and outputs under tmp_path."""
    monkeypatch.setattr(execution, "FOLDER", tmp_path / "notebooks")
    execution.FOLDER.mkdir()
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(FIELDS))
    with (mock.patch.dict(os.environ, FORESIGHT_OUTPUTS=str(tmp_path / "outputs")),
          mock.patch.dict(profile.NOTEBOOKS, clear=True)):
        yield tmp_path


def notebook(name, *cells, parameters=FIELDS, tags=("parameters",), kernel="python3"):
    """Writes a notebook: its parameters cell, then code cells (or ready-made ones)."""
    first = new_code_cell("\n".join(f"{key} = {value!r}" for key, value in parameters.items()))
    first.metadata["tags"] = list(tags)
    cells = [new_code_cell(cell) if isinstance(cell, str) else cell for cell in cells]
    made = new_notebook(cells=[first, *cells], metadata={"kernelspec": {"name": kernel, "display_name": "Python 3"}})
    nbformat.write(made, execution.FOLDER / f"{name}.ipynb")
    profile.NOTEBOOKS[name] = ()


def start(house, *options):
    return run.main([str(house / "tiny.yaml"), *options])


def change(house, **fields):
    (house / "tiny.yaml").write_text(yaml.safe_dump({**FIELDS, **fields}))


# ---- what is refused: exit code 2, one sentence, nothing run

@pytest.mark.parametrize("fault, named", [
    (dict(tags=()), "tag `parameters`"),
    (dict(parameters={**FIELDS, "sedes": 1}), "sedes"),
    (dict(parameters={key: FIELDS[key] for key in FIELDS if key != "width"}), "width"),
    (dict(kernel="julia"), "'julia'"),
])
def test_unfit_notebook_is_refused_before_anything_runs(house, capsys, fault, named):
    notebook("good", "open('ran', 'w')")
    notebook("unfit", **fault)
    assert start(house) == 2
    assert "unfit.ipynb" in (said := capsys.readouterr().err) and named in said
    assert not (execution.FOLDER / "ran").exists()


@pytest.mark.parametrize("fields, named", [
    (dict(sedes=[1]), "`sedes`: unknown key"),
    (dict(width="wide"), "`width`"),
    (dict(compressions=[1, 0.5]), "0.5"),
    (dict(compressions=[1, 1e6]), "largest"),
    (dict(pairs={"digits/alexnet": 1}), "digits/alexnet"),
    (dict(pairs={"digits/cnn": -1}), "-1 epochs"),
    (dict(profile="../elsewhere"), "`profile`: '../elsewhere' cannot name a folder"),
    (dict(profile="two words"), "'two words'"),
    (dict(seeds=42), "`seeds`: input should be a valid list, not 42."),
    (dict(seeds=[True]), "`seeds`: true is neither a number"),
    (dict(pairs={"digits/cnn": True}), "`pairs`: true"),
    (dict(width=float("inf")), "`width`: input should be a finite number"),
    (dict(learning_rate=float("nan")), "`learning_rate`"),
    (dict(compressions=[1, float("nan")]), "nan is not one"),
    (dict(obd_images={"cifar1O": 2048}), "`obd_images`: 'cifar1O' is not a data set"),
])
def test_unfit_profile_is_refused(house, capsys, fields, named):
    notebook("needs", "1")
    profile.NOTEBOOKS["needs"] = ("Random",)
    change(house, **fields)
    assert start(house) == 2
    assert named in (said := capsys.readouterr().err) and said.count("\n") == 1


@pytest.mark.parametrize("options, named", [
    (["--methods", "SNAP"], "'SNAP'"),
    (["--pairs", "mnist/cnn"], "'mnist/cnn'"),
    (["--ratios", "0.5"], "0.5"),
    (["--ratios", "3"], "no compression 3"),
    (["--only", "07_nothing"], "'07_nothing'"),
    (["--data", "no/such/folder"], "no/such/folder"),
    (["--workers", "0"], "--workers 0"),
    (["--outputs", __file__], __file__),
    (["--outputs", ""], "--outputs is given, but empty"),
    (["--scheduler", ""], "--scheduler is given, but empty"),
    (["--device", "mps"], "--device mps: there is no such device"),
    (["--device", "meta"], "--device meta: there is no such device"),    # it computes nothing
    (["--device", "gpu", "--scheduler", "tcp://127.0.0.1:1"], "--device gpu"),
    (["--subset", "99999"], "digits has 1442 training images"),
    (["--only", "good", "--methods", "SNIP"], "leave no cell that good needs"),
])
def test_unfit_option_is_refused(house, capsys, options, named):
    notebook("good", "1")
    profile.NOTEBOOKS["good"] = ("Random",)
    assert start(house, *options) == 2
    assert named in (said := capsys.readouterr().err) and said.count("\n") == 1 and len(said) < 500


@pytest.mark.parametrize("options, named", [
    (["--budget", "-1"], "--budget: invalid number of seconds value: '-1'"), (["--budget", "nan"], "'nan'"),
    (["--budget", "soon"], "'soon'"), (["--workers", "two"], "'two'"), (["--ratios", "four"], "'four'"),
    (["--precision", "fp8"], "'fp8'"), (["--nosuch"], "--nosuch"), (["another"], "another"),
])
def test_what_the_command_line_cannot_read_is_one_sentence(house, capsys, options, named):
    with pytest.raises(SystemExit) as ended:
        start(house, *options)
    assert ended.value.code == 2
    assert named in (said := capsys.readouterr().err) and said.startswith("error: ") and said.count("\n") == 1


def test_a_budget_of_nothing_computes_nothing_and_renders(house, capsys):
    notebook("good", "1")
    notebook("needs", "1")
    profile.NOTEBOOKS["needs"] = ("Random",)
    assert start(house, "--budget", "0") == 0
    assert "good: executed" in (said := capsys.readouterr().out) and "needs: left out: 3 of its cells" in said


@pytest.mark.parametrize("budget, spent, left", [(60, 25, [60, 35]), (60, 100, [60, 0]), (None, 25, [None, None]),
                                                 (0, 25, [0, 0])])
def test_cells_and_studies_share_one_budget(house, monkeypatch, budget, spent, left):
    given, now = [], iter([100, 100 + spent])
    monkeypatch.setattr(run, "compute", lambda missing, store, options, budget, work=None: given.append(budget) or [])
    monkeypatch.setattr(run, "time", mock.Mock(monotonic=lambda: next(now)))
    options = run.parser().parse_args(["quick"] + (["--budget", str(budget)] if budget is not None else []))
    assert run.fill(profile.load("quick"), [run.AUDIT], options) == [] and given == left


def test_a_budget_of_nothing_takes_no_data(house, tmp_path):
    notebook("needs", "1")
    profile.NOTEBOOKS["needs"] = ("Random",)
    change(house, pairs={"mnist/cnn": 0})
    (tmp_path / "empty").mkdir()
    assert start(house, "--budget", "0", "--data", str(tmp_path / "empty")) == 0
    assert start(house, "--data", str(tmp_path / "empty")) == 2


def test_a_profile_of_no_name_is_not_the_quick_one(house, capsys):
    assert run.main([""]) == 2
    assert "Unknown profile ''" in capsys.readouterr().err


def test_a_profile_that_holds_itself_is_refused(house, capsys):
    (house / "tiny.yaml").write_text("pairs: &pairs {digits/cnn: *pairs}\n")
    assert start(house) == 2
    assert "tiny.yaml is not YAML" in (said := capsys.readouterr().err) and said.count("\n") == 1


def test_json_of_something_else_is_no_notebook(house, capsys):
    notebook("good", "1")
    (execution.FOLDER / "good.ipynb").write_text("[1]")
    assert start(house) == 2
    assert "good.ipynb is not a notebook" in (said := capsys.readouterr().err) and said.count("\n") == 1


def test_a_key_that_comes_twice_is_refused(house, capsys):
    notebook("good", "1")
    path = house / "tiny.yaml"
    path.write_text(path.read_text().replace("digits/cnn: 0", "digits/cnn: 0\n  digits/cnn: 5") + "seeds: [2]\n")
    assert start(house) == 2
    assert "gives `seeds` and `digits/cnn` more than once" in capsys.readouterr().err


@pytest.mark.parametrize("name, kind", [("cpu", "cpu"), ("cpu:0", "cpu")])
def test_the_processor_is_no_card_whatever_it_is_called(name, kind):
    assert run.kind_of(name, there=True) == kind
    assert run.kind_of("cuda:1", there=False) == "cuda"    # a cluster's workers may have one


def test_missing_key_is_named_and_a_number_in_a_string_is_accepted(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(FIELDS).replace("0.001", "1e-3"))
    assert profile.load(path).learning_rate == 0.001
    path.write_text("profile: own\n")
    with pytest.raises(UserError, match="`seeds` is missing"):
        profile.load(path)


def test_mistake_ends_with_code_2_and_without_a_traceback():
    done = subprocess.run([sys.executable, "-m", "lib.run", "nosuch"], cwd=profile.ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: Unknown profile 'nosuch'")
    assert "Traceback" not in done.stderr


def test_full_disk_is_a_sentence_and_leaves_the_old_notebook(house, capsys, monkeypatch):
    notebook("good", "1")
    assert start(house) == 0
    before = (house / "outputs/tiny/notebooks/good.ipynb").read_bytes()
    notebook("good", "2")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "good.partial.ipynb")

    monkeypatch.setattr(nbformat, "write", full)
    assert start(house) == 2
    assert "No space left" in capsys.readouterr().err
    assert (house / "outputs/tiny/notebooks/good.ipynb").read_bytes() == before


@pytest.mark.parametrize("fault", [errno.EFBIG, errno.EIO])
def test_a_limit_on_files_and_a_faulty_disk_are_sentences_too(house, capsys, monkeypatch, fault):
    notebook("good", "1")
    monkeypatch.setattr(run, "fill", mock.Mock(side_effect=OSError(fault, os.strerror(fault))))
    assert start(house) == 2
    assert os.strerror(fault) in (said := capsys.readouterr().err) and said.count("\n") == 1


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
def test_a_reader_that_leaves_is_no_traceback(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-m", "lib.run", "--list", "--outputs", str(tmp_path)], cwd=profile.ROOT,
                          text=True, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "finished cells are kept" in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_before_anything_has_begun_is_no_traceback():
    process = subprocess.Popen([sys.executable, "-v", "-m", "lib.run", "--list"], cwd=profile.ROOT, text=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while "import 'torch'" not in (line := process.stderr.readline()) and "torch/__init__" not in line:
        assert line
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == -signal.SIGINT and "Traceback" not in said


def test_a_warning_is_a_sentence_without_its_place_in_the_code(house, capsys):
    notebook("good", "1")
    (house / "outputs" / "tiny").mkdir(parents=True)
    (house / "outputs" / "tiny" / "results.jsonl").write_text("{")
    assert start(house) == 0
    said = capsys.readouterr().err.splitlines()
    assert said and all(line.startswith("warning: ") and "torn" in line for line in said)


# ---- what is survived: the others run, exit code 1 names the one that did not

@pytest.mark.parametrize("cell, said", [
    ("1 / 0", "ZeroDivisionError"),
    ("import sys; sys.exit(0)", "SystemExit"),
    ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "DeadKernelError"),
])
def test_notebook_that_does_not_reach_its_end_is_named(house, capsys, cell, said):
    notebook("bad", cell, "2")
    notebook("good", "3")
    assert start(house) == 1
    assert re.search(rf"failed: tiny: bad: .*{said}.*bad\.partial\.ipynb", capsys.readouterr().err)
    made = {path.name for path in (house / "outputs/tiny/notebooks").iterdir()}
    assert made == {"bad.partial.ipynb", "good.ipynb"}
    assert json.loads((house / "outputs/tiny/manifest.json").read_text())["notebooks"]["bad"]["status"] == "failed"


def test_a_cell_that_did_not_run_is_found_by_its_count():
    cells = [new_code_cell("1", execution_count=1), new_markdown_cell("text"), new_code_cell("2", execution_count=None)]
    assert execution.unfinished(new_notebook(cells=cells)) == "code cell 2 of 2 did not run"
    cells[2].execution_count = 2
    assert execution.unfinished(new_notebook(cells=cells)) is None


def test_ctrl_c_ends_within_seconds_and_says_how_to_go_on(house):
    notebook("slow", "import time; time.sleep(60)")
    script = (f"import os, pathlib; from lib import execution, profile, run\n"
              f"execution.FOLDER = pathlib.Path({str(execution.FOLDER)!r}); profile.NOTEBOOKS['slow'] = ()\n"
              f"os._exit(run.main([{str(house / 'tiny.yaml')!r}, '--only', 'slow']))")
    process = subprocess.Popen([sys.executable, "-c", script], cwd=profile.ROOT, stdout=subprocess.PIPE, text=True)
    while not (house / "outputs/tiny/notebooks/slow.partial.ipynb").exists():
        time.sleep(0.1)
    time.sleep(1)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate()
    assert process.returncode == 130 and "goes on from there" in said and time.monotonic() - began < 5


# ---- what is left behind

def test_parameters_and_places_reach_the_notebook(house):
    notebook("good", "import lib, os, pathlib\n"   # lib is found although it is not installed
                     "places = os.environ['FORESIGHT_OUTPUTS'], os.environ['FORESIGHT_WORKERS']\n"
                     "pathlib.Path('got').write_text(repr((pairs, text_learning_rate, *places)))",
             parameters={**FIELDS, "pairs": {}, "text_learning_rate": 7})
    assert start(house, "--workers", "3") == 0
    assert (execution.FOLDER / "got").read_text() == repr(({"digits/cnn": 0}, None, str(house / "outputs"), "3"))


def test_second_run_writes_the_same_bytes(house):
    notebook("good", new_markdown_cell("# A title"), "print('a'); print('b')", "hash('seed')", "{1, 'x'}")
    made = [house / "outputs/tiny/notebooks/good.ipynb", house / "outputs/tiny/html/good.html"]
    assert start(house) == 0
    first = [path.read_bytes() for path in made]
    (house / "outputs/tiny/manifest.json").unlink()   # else nothing would be executed
    assert start(house) == 0
    assert [path.read_bytes() for path in made] == first


def test_what_has_not_changed_is_not_executed_again(house, capsys):
    notebook("good", "import pathlib; pathlib.Path('ran').open('a').write('x')")
    notebook("other", "1")
    ran = execution.FOLDER / "ran"

    def runs(*options):
        ran.write_text("")
        assert start(house, *options) == 0
        return ran.read_text() == "x"

    assert runs() and not runs()
    assert "tiny: good: nothing has changed" in capsys.readouterr().out
    assert not runs("--only", "good") and not runs("--only", "other") and not runs()
    (house / "outputs/tiny/results.jsonl").touch()
    assert runs() and not runs()
    change(house, learning_rate=0.5)
    assert runs() and not runs()
    (house / "outputs/tiny/html/good.html").unlink()
    assert runs() and not runs()
    notebook("good", "import pathlib; pathlib.Path('ran').open('a').write('x')", "2")
    assert not runs("--only", "other") and runs()


def test_a_failed_notebook_runs_again(house):
    notebook("bad", "open('ran', 'a').write('x'); 1 / 0")
    assert start(house) == start(house) == 1
    assert (execution.FOLDER / "ran").read_text() == "xx"


def test_page_needs_no_network(house):
    notebook("good", new_markdown_cell("Score $\\theta_u^2$, not `$code$`.\n\n$$\\frac{a}{b}$$\n\n"
                                       "![badge](https://a.org/b.svg) [next](other.ipynb) [no page](02_obd.ipynb) "
                                       "[index](../README.md)"),
             "from IPython.display import Image, Markdown, display; display(Markdown('so $x < y$'))\n"
             "display(Image(b'png', format='png', embed=True, alt='a < b', width=99))")
    notebook("other", "1")
    assert start(house) == 0
    page = (house / "outputs/tiny/html/good.html").read_text()
    assert page.count("<math") == 3 and "<mfrac>" in page and "$code$" in page and "\\theta" not in page
    assert not re.search(r"<script|<link|@import|(?:src=[\"']|url\([\"']?)(?!data:)http", page)
    assert re.search('<img alt="a &lt; b" src="data:image/png;base64,[^"]+" width="99"', page)
    assert 'href="other.html"' in page and 'href="index.html"' in page and "badge" in page
    assert "no page" in page and "02_obd" not in page
    assert 'href="../html/good.html"' in (house / "outputs/tiny/html/index.html").read_text()


def test_latex_that_has_no_mathml_stays_readable():
    assert pages.mathml(r"\nosuch{x} < 1", "inline") == r"<code>\nosuch{x} &lt; 1</code>"
    assert "<mtable" in pages.mathml(r"\begin{aligned} a &= b \\ c &= d \end{aligned}", "block")


def test_cells_are_computed_once_and_stand_in_the_manifest(house, capsys):
    notebook("needs", "1")
    profile.NOTEBOOKS["needs"] = ("Random",)
    assert start(house, "--workers", "1") == 0
    assert "0 of 3 cells are in the store" in capsys.readouterr().out
    assert start(house) == 0
    assert "3 of 3 cells are in the store" in capsys.readouterr().out
    noted = manifest.read(house / "outputs/tiny")
    assert noted["cells"]["store"] == 3 and noted["profile"]["width"] == 0.125
    assert "torch" in noted["packages"] and noted["notebooks"]["needs"]["status"] == "executed"


def test_failed_cell_is_named_and_its_notebook_left_out(house, capsys, monkeypatch):
    notebook("needs", "1")
    profile.NOTEBOOKS["needs"] = ("Random",)
    monkeypatch.setattr(sweep, "run", lambda cells, store, **_: [f"{cells[0]}: no luck"])
    assert start(house) == 1
    said = capsys.readouterr()
    assert "needs: left out" in said.out and "Dense" in said.err and "no luck" in said.err


def test_what_is_left_is_counted(house, capsys):
    notebook("needs", "1")
    profile.NOTEBOOKS["needs"] = ("SNIP", "Random")
    assert start(house, "--dry-run", "--methods", "SNIP@run", "Random") == 0
    assert "tiny: 5 of 5 cells left" in capsys.readouterr().out
    assert run.main(["--list"]) == 0
    assert re.search(r"needs +\d+ of +\d+ cells left", capsys.readouterr().out)
    assert not (house / "outputs").exists()


def test_studies_that_are_left_are_counted(capsys):
    assert run.main(["--list", "--outputs", "/nonexistent/of-no-store"]) == 0
    parts = re.split(r"^(\w+) .*\n", capsys.readouterr().out, flags=re.MULTILINE)
    left = dict(zip(parts[1::2], parts[2::2], strict=True))    # profile -> its lines
    assert re.search(r"^  studies +(\d\d+) of +\1 left$", left["masks"], re.MULTILINE) and "07_audit" in left["masks"]
    assert "studies" not in left["mnist"] and "07_audit" not in left["mnist"] and "06_results" in left["mnist"]


@pytest.mark.parametrize("images, message", [(65, "scored on 65 images, but there are 64"), (33, "batch of one image")])
def test_a_number_of_images_that_obd_cannot_be_scored_on_is_refused_at_once(images, message, monkeypatch):
    monkeypatch.setattr(run.pruning, "CALIBRATION_CHUNK", 32)
    cell = Cell("shapes10", "vgg16", "OBD", 2, 42, 0, 1e-3, width=0.125, train_images=64, score_images=images)
    with pytest.raises(UserError, match=message):
        run.check_cells([cell], None)
    run.check_cells([dataclasses.replace(cell, score_images=64)], None)


def test_no_profile_also_renders_the_results_of_the_other_stores(house, monkeypatch):
    notebook(profile.RESULTS, "import pathlib; pathlib.Path(f'got-{profile}').touch()")
    for name in ("quick", "mnist"):
        monkeypatch.setattr(profile, "ROOT", house)
        change(house, profile=name)
        (house / "params").mkdir(exist_ok=True)
        (house / "tiny.yaml").rename(house / "params" / f"{name}.yaml")
    store = house / "outputs/mnist/results.jsonl"
    store.parent.mkdir(parents=True)
    store.touch()
    monkeypatch.setattr(run, "fill", lambda chosen, *_: [] if chosen.profile == "quick" else pytest.fail("computed"))
    assert run.main([]) == 0
    assert (execution.FOLDER / "got-quick").exists() and (execution.FOLDER / "got-mnist").exists()
    assert (house / "outputs/quick/html/06_results.html").exists() and (store.parent / "html/06_results.html").exists()


def test_a_profile_that_audits_nothing_has_no_audit_notebook(house, capsys):
    notebook(profile.AUDIT, "pass")
    assert start(house, "--only", profile.AUDIT) == 2
    assert "audits no pairs" in capsys.readouterr().err


def test_an_audit_answers_its_studies_once(house, monkeypatch, capsys):
    notebook(profile.AUDIT, "pass")
    change(house, audit=["digits/cnn"], compressions=[1, 4])
    assert start(house, "--dry-run") == 0
    total = len(run.audit.studies(profile.load(house / "tiny.yaml")))
    assert re.search(rf"studies +{total} of +{total}", capsys.readouterr().out)
    assert start(house, "--methods", "LAMP") == 0
    assert "0 of 2 studies" in capsys.readouterr().out
    assert start(house, "--methods", "LAMP") == 0
    assert "2 of 2 studies" in capsys.readouterr().out


# ---- the grid of a profile

def test_grid_has_each_cell_once_the_unpruned_ones_first_and_ratios_together():
    fields = {**FIELDS, "compressions": [1, 4, 16], "seeds": [1, 2]}
    cells = profile.Profile(**{**fields, "pairs": {"digits/cnn": 1}}).cells()
    assert len(set(cells)) == len(cells) == 2 * (3 + 30 * 2)
    for seed in (1, 2):
        assert [cell.compression for cell in cells if cell.seed == seed][:4] == [1.0] * 3 + [4.0]
    assert [(cell.method, cell.compression) for cell in cells[3:7]] == [
        ("Random", 4.0), ("Random", 16.0), ("GlobalMag", 4.0), ("GlobalMag", 16.0)]
    masks_only = profile.Profile(**fields).cells(methods=["OBD", "SNIP"], ratios=[4])
    assert [cell.method for cell in masks_only[:5]] == ["OBD", "OBD@run", "SNIP", "SNIP@written", "SNIP@run"]


def test_published_readings_go_further_as_far_as_the_network_reaches():
    further = profile.Profile(**{**FIELDS, "pairs": {"cifar10/resnet56": 0, "cifar100/resnet56": 0, "cifar10/vgg16": 0},
                                 "width": 1, "further_compressions": [128, 256]}).cells(methods=["SNIP"])
    assert [(cell.dataset, cell.model, cell.method, cell.compression) for cell in further if cell.compression > 64] == [
        ("cifar10", "resnet56", "SNIP", 128), ("cifar10", "vgg16", "SNIP", 128), ("cifar10", "vgg16", "SNIP", 256)]


def test_seeds_come_one_after_the_other_for_all_pairs():
    tiny = profile.Profile(**{**FIELDS, "pairs": {"digits/cnn": 0, "shapes10/vgg16": 0}, "seeds": [1, 2]})
    order = list(dict.fromkeys((cell.seed, cell.dataset) for cell in tiny.cells() if cell.compression > 1))
    assert order == [(1, "digits"), (1, "shapes10"), (2, "digits"), (2, "shapes10")]


def test_text_rate_is_for_the_run_readings_of_the_first_seed():
    tiny = profile.Profile(**{**FIELDS, "seeds": [1, 2], "text_learning_rate": 1e-4})
    slow = [cell for cell in tiny.cells() if cell.learning_rate == 1e-4]
    assert {cell.seed for cell in slow} == {1}
    assert all("@run" in cell.method for cell in slow if cell.compression > 1)
    assert len([cell for cell in slow if cell.compression == 4]) == 14


def test_obd_alone_scores_more_images_and_the_whole_set_when_asked():
    images = {cell.method: cell.score_images for cell in profile.Profile(**FIELDS).cells()}
    assert images["OBD"] == images["OBD@run"] == 16 and images["SNIP"] == images["Dense"] == 128
    own = profile.Profile(**{**FIELDS, "pairs": {"digits/cnn": 0, "shapes10/vgg16": 0}, "obd_images": {"digits": 7}})
    assert {cell.score_images for cell in own.cells(methods=["OBD"], pairs=["digits/cnn"], ratios=[4])} == {7}
    assert {cell.score_images for cell in own.cells(methods=["OBD"], pairs=["shapes10/vgg16"], ratios=[4])} == {64}
    whole = profile.load("mnist").cells(methods=["OBD@run"], ratios=[4])
    assert whole[0] == Cell("mnist", "cnn", "OBD@run", 4, 42, 5, 1e-3, score_images=60_000)
    assert {cell.score_images for cell in whole} == {60_000}


def test_readings_are_selected_by_name():
    assert profile.select(["SNIP"]) == ["SNIP", "SNIP@written", "SNIP@run"]
    assert profile.select(["SNIP@run", "LAMP@published"]) == ["LAMP", "SNIP@run"]


@pytest.mark.parametrize("name", profile.names())
def test_every_profile_of_params_is_sound(name):
    loaded = profile.load(name)
    assert loaded.profile == name and loaded.cells()
    lines = (profile.ROOT / "params" / f"{name}.yaml").read_text().splitlines()
    assert all("#" in line for line in lines if re.match(r"\w+:", line))


def test_notebooks_share_the_methods_out():
    covered = [base for name, bases in profile.NOTEBOOKS.items() if name not in profile.DRAWN for base in bases]
    assert sorted(covered) == sorted({name.split("@")[0] for name in profile.select()})


def test_the_index_lists_in_a_readers_order(tmp_path):
    (tmp_path / "figures").mkdir()
    for stem in ("figure-4.10", "figure-4.2", "04-b", "04-a"):
        (tmp_path / "figures" / f"{stem}.png").touch()
    assert re.findall(r"<li>(.*?):", pages.index("x", tmp_path)) == ["04-a", "04-b", "figure-4.2", "figure-4.10"]


def test_the_index_says_what_a_file_is(tmp_path):
    for folder in ("html", "tables", "figures"):
        (tmp_path / folder).mkdir()
    (tmp_path / "html/02_obd.html").write_text("<title>02_obd</title><h1 id='x'>Damage &amp; more<a>¶</a></h1>")
    tables.save(tables.Table("Of r < 2. A second sentence.", pd.DataFrame({"a": ["1"]})), tmp_path / "tables/t")
    figure = figures.score_distribution({"x": torch.zeros(7)}, title="Scores & signs")
    figures.save(figure, tmp_path / "figures/f")
    (tmp_path / "figures/silent.svg").write_text("<svg/>")
    said = re.findall(r"<li>(.*?):.*?</a>(?:<br><small>(.*?)</small>)?</li>", pages.index("x", tmp_path))
    assert said == [("02_obd", "Damage &amp; more"), ("t", "Of r &lt; 2"), ("f", "Scores &amp; signs"), ("silent", "")]


# ---- cut down, and estimated

def test_a_cut_profile_keeps_its_results_apart_and_says_what_it_is():
    whole = profile.load("paper")
    cut = whole.cut(1, 2048)
    assert cut.profile == "paper-1epochs-2048images" and set(cut.pairs.values()) == {1} and cut.train_images == 2048
    assert {cell.epochs for cell in cut.cells()} == {1} and {cell.train_images for cell in cut.cells()} == {2048}
    assert not {cell.key for cell in cut.cells()} & {cell.key for cell in whole.cells()}
    assert whole.cut() == whole
    assert profile.load("masks").cut(5).pairs == profile.load("masks").pairs   # nothing is trained longer than it was
    assert profile.load("masks").cut(None, 100).obd_images == {"mnist": 100, "cifar10": 100, "cifar100": 100}


def test_a_profile_cannot_be_cut_up():
    with pytest.raises(UserError, match="at most 50 epochs cannot be cut down to 51"):
        profile.load("paper").cut(51)


def test_a_copy_that_kept_the_name_of_a_profile_is_refused(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text((profile.ROOT / "params/mnist.yaml").read_text())
    with pytest.raises(UserError, match="calls itself `mnist`"):
        profile.load(mine)
    mine.write_text(mine.read_text().replace("profile: mnist", "profile: mine"))
    assert profile.load(mine).profile == "mine"


def test_folders_that_the_environment_names_do_not_depend_on_the_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with mock.patch.dict(os.environ, FORESIGHT_OUTPUTS="out", FORESIGHT_DATA="images"):
        run.set_environment(run.parser().parse_args(["quick"]))
        assert os.environ["FORESIGHT_OUTPUTS"] == str(tmp_path / "out")
        assert os.environ["FORESIGHT_DATA"] == str(tmp_path / "images")


@pytest.mark.parametrize("name", data.PREPARED)
def test_other_images_do_not_come_among_the_results_of_a_set(monkeypatch, name):
    impostor = dataclasses.replace(data.load("digits"), name=name)
    monkeypatch.setattr(run.data, "load", lambda *_: impostor)
    with pytest.raises(UserError, match=f"{name}.npz holds other images or labels than {name} .1442 to train"):
        run.check_cells([Cell(name, "cnn", "LAMP", 4, 42, 5, 1e-3)], None)


@pytest.mark.parametrize("array", data.ARRAYS[:4])
def test_one_changed_image_or_label_is_noticed(monkeypatch, array):
    images = dataclasses.replace(data.load("digits"), name="mnist")
    digest = hashlib.sha256(b"".join(getattr(images, each).numpy().tobytes() for each in data.ARRAYS[:4])).hexdigest()
    monkeypatch.setitem(data.DIGESTS, "mnist", digest)
    images.check_genuine()
    getattr(images, array)[7] ^= 1
    with pytest.raises(UserError, match="other images or labels"):
        images.check_genuine()


def test_a_last_batch_of_one_image_is_refused_before_anything_is_computed():
    cell = Cell("shapes10", "vgg16", "LAMP", 2, 42, 1, 1e-3, width=0.125, train_images=129)
    with pytest.raises(UserError, match="batch of one"):
        run.check_cells([cell], None)
    run.check_cells([dataclasses.replace(cell, train_images=130), dataclasses.replace(cell, epochs=0)], None)


def test_who_renders_the_same_profile_waits(house):
    chosen, ended = profile.load(house / "tiny.yaml"), threading.Event()
    run.check_writable(profile.outputs("tiny"))
    other = threading.Thread(target=lambda: (run.render([(chosen, [])], 1), ended.set()), daemon=True)
    with FileLock(profile.outputs("tiny") / "render.lock"):
        other.start()
        assert not ended.wait(0.5)
    assert ended.wait(60)


@pytest.mark.parametrize("options", [("--epochs", "0"), ("--subset", "-3")])
def test_a_cut_to_nothing_is_refused(house, capsys, options):
    assert start(house, *options) == 2
    assert "at least 1 is needed" in capsys.readouterr().err


def test_what_answers_most_is_computed_first():
    cells = profile.load("paper").cells()
    name = lambda cell: (cell.dataset, cell.model, cell.method, cell.compression, cell.learning_rate)
    first = [name(cell) for cell in cells[:8]]
    pilot = [("cifar10", "resnet56", method, ratio, rate) for rate in (1e-3, 1e-4)
             for method, ratio in (("Dense", 1), ("Random@run", 32), ("GlobalMag@run", 32), ("SNIP@run", 32))]
    assert set(first) == set(pilot)
    of_tables = [cell for cell in cells if cell.seed == 42 and cell.compression in (32, 64) and cell.learning_rate == 1e-3
                 and cell.method.endswith("@run") and name(cell) not in pilot]
    dense = [cell for cell in cells if cell.seed == 42 and cell.compression == 1 and name(cell) not in pilot]
    assert cells[8:8 + len(dense)] == dense
    begin = 8 + len(dense)
    assert set(cells[begin:begin + len(of_tables)]) == set(of_tables)
    models = [cell.model for cell in cells[begin:begin + len(of_tables)]]
    assert models == sorted(models, key=lambda model: model != "vgg16")
    after = cells[begin + len(of_tables):]
    assert all("@" not in cell.method and cell.compression in (32, 64) for cell in after[:28 * 4])
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)


def test_estimates_count_operations_by_hand():
    cell = Cell("digits", "cnn", "Random", 4, 1, 2, 0.01, train_images=100)
    forward = 2 * (24 * 24 * 20 * 25 + 8 * 8 * 50 * 500 + 800 * 500 + 500 * 10)   # Table 4.1, 2 for each weight's use
    assert estimate.flops(cell) == (3 * 100 * 2 + 355 * 3) * forward
    whole = dataclasses.replace(cell, train_images=None)
    assert estimate.flops(whole) == (3 * 1442 * 2 + 355 * 3) * forward
    assert estimate.flops(dataclasses.replace(whole, dataset="mnist")) == (3 * 60_000 * 2 + 10_000 * 3) * forward
    assert estimate.flops(dataclasses.replace(cell, epochs=0)) == 0
    found = estimate.of([cell, dataclasses.replace(cell, epochs=0)])["digits/cnn"]
    assert found.flops == estimate.flops(cell) and 0 < found.seconds < 1000


def test_an_estimate_adds_up_operations_and_the_seconds_of_each_at_its_networks_rate(monkeypatch):
    given = []
    monkeypatch.setattr(estimate, "rate", lambda model, classes, width, batch_size, seconds, *where: given.append(
        (seconds, *where)) or {1.0: 100.0, 0.5: 1000.0}[width])
    cells = [Cell("digits", "cnn", method, 4, 1, 2, 0.01, width=width, train_images=100)
             for method in ("Random", "SNIP") for width in (1.0, 0.5)]
    found, costs = estimate.of(cells, "card", 8, "bf16")["digits/cnn"], [estimate.flops(cell) for cell in cells]
    assert found.flops == sum(costs) and costs[0] > costs[1]
    assert found.seconds == pytest.approx(2 * (costs[0] / 100 + costs[1] / 1000))
    assert given == [(estimate.CALIBRATION / 2, "card", 8, "bf16")] * 2    # shared out between the two networks


@pytest.mark.parametrize("copies", [1, 3])
def test_the_rate_is_three_forward_passes_by_the_median_of_the_times(copies, monkeypatch):
    ticks = iter([0, 0, 7, 7, 8, 11, 12, 14, 14.5, 100])    # began; steps of 7, 1 - looked at after each -, 2 and ...
    clock = mock.Mock(perf_counter=lambda: next(ticks))
    monkeypatch.setattr(estimate, "time", clock)
    forward = estimate._forward("cnn", 10, 0.1)
    # began 0; 0 to 7; 7 to 8; 11 spent of 13; 12 to 14; 14.5 spent: the median of 7, 1 and 2 is 2.
    assert estimate.rate("cnn", 10, 0.1, 4, 13, copies=copies) == copies * 3 * 4 * forward / 2


def test_a_dry_run_says_operations_and_hours(house, capsys, monkeypatch):
    monkeypatch.setattr(estimate, "CALIBRATION", 0.05)
    change(house, pairs={"digits/cnn": 1})
    notebook("needs")
    profile.NOTEBOOKS["needs"] = ("Random",)
    assert start(house, "--dry-run") == 0
    line = r"digits/cnn +\d+ of +\d+ +\d+\.\d+ PFLOP, about \d+\.\d h with \d workers? on cpu"
    assert re.search(line, capsys.readouterr().out)
