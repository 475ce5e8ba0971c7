"""What the README promises and no other test holds: its patch really adds a method."""

import re
import shutil
import subprocess
import sys

from lib import UserError, readme
from lib.profile import ROOT
from lib.store import Store

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_patch_adds_a_method_of_ones_own(tmp_path):
    shutil.copytree(ROOT / "lib", tmp_path / "lib", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "params", tmp_path / "params")
    patch = re.search(r"```diff\n(.*?)```", TEXT, re.S)[1]
    subprocess.run(["git", "apply", "-"], input=patch, text=True, cwd=tmp_path, check=True,
                   env={"PATH": "/usr/bin:/bin", "GIT_CEILING_DIRECTORIES": str(tmp_path.parent)})
    check = ("from lib import methods, models, profile, pruning, tables; import torch; "
             "images, labels = torch.randn(8, 1, 28, 28), torch.arange(8); "
             "masks = pruning.masks(models.build('cnn'), methods.get('Mine'), images, labels, 16); "
             "assert sum(int(mask.sum()) for mask in masks.values()) == 21362; "
             "assert 'Mine' in tables.bases() and 'Mine' in profile.select(); "
             "assert any(cell.method == 'Mine' for cell in profile.load('quick').cells())")
    subprocess.run([sys.executable, "-c", check], cwd=tmp_path, check=True, env={"PYTHONPATH": str(tmp_path)})


def test_what_was_found_is_what_the_stores_say():
    stale = TEXT.replace("cells computed", "").replace("cells of CIFAR", "").replace(" core hours", "")
    assert readme.replaced(stale) == TEXT != stale, "python -m lib.readme writes what the stores say now"
    assert (ROOT / readme.CLAIMS).read_text(encoding="utf-8") == readme.claims_page()
    assert all((ROOT / target).exists() for target in re.findall(r"\]\(((?:outputs|notebooks)/[^)#]+)\)", TEXT))
    assert (ROOT / re.search(r"!\[.+\]\((outputs/.+)\)", TEXT)[1]).is_file()


def test_a_cell_has_the_same_mask_in_every_store():
    """Two machines may differ in the last digits of a score, and so in a few weights; not in the initial weights."""
    there = {record.cell.score_key + (record.cell.compression,): record.report["kept"]
             for record in Store(ROOT / "outputs/masks/results.jsonl").records.values()}
    trained = list(Store(ROOT / "outputs/mnist/results.jsonl").records.values())
    for record in trained:
        kept, again = record.report["kept"], there[record.cell.score_key + (record.cell.compression,)]
        moved = sum(abs(kept[layer] - again[layer]) for layer in kept)
        assert moved <= 0.002 * sum(kept.values()), f"{record.cell}: {moved} weights lie in another layer"
    assert len(trained) > 600


def test_a_mistake_costs_a_sentence_and_not_the_readme(tmp_path, monkeypatch, capsys):
    def corrupt():
        raise UserError("line 636 is corrupt")

    (mine := tmp_path / "README.md").write_text(TEXT, encoding="utf-8")
    monkeypatch.setattr(readme, "README", mine)
    monkeypatch.setattr(readme, "found", corrupt)
    monkeypatch.setattr(sys, "argv", ["readme"])
    assert readme.main() == 2 and capsys.readouterr().err == "error: line 636 is corrupt\n"
    assert mine.read_text(encoding="utf-8") == TEXT


def test_every_notebook_and_profile_is_named():
    assert all(f"notebooks/{path.name}" in TEXT for path in (ROOT / "notebooks").glob("*.ipynb"))
    assert all(f"`{path.stem}`" in TEXT for path in (ROOT / "params").glob("*.yaml"))
