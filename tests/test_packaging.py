"""The files that make the environment agree with each other and with what the code imports."""

import ast
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions

import pytest
import yaml

from lib.profile import ROOT

# Where conda-forge calls a package otherwise.
CONDA = {"pytorch-cpu": "torch", "dask-core": "dask", "matplotlib-base": "matplotlib"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def pins():
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    return dict(line.lower().split("==") for line in lines if line)


def test_environment_and_requirements_name_the_same_versions():
    entries = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    versions = dict(entry.split("=") for entry in entries if entry != "pip")
    python = versions.pop("python")
    assert {CONDA.get(name, name): version for name, version in versions.items()} == {
        name: ".".join(version.split(".")[:2]) for name, version in pins().items()}
    assert PROJECT["project"]["requires-python"] == f">={python}"


def test_package_takes_its_versions_from_requirements():
    assert "dependencies" in PROJECT["project"]["dynamic"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["dependencies"] == {"file": ["requirements.txt"]}


def test_every_package_of_lib_is_named():
    folders = {path.parent.relative_to(ROOT).as_posix().replace("/", ".") for path in ROOT.glob("lib/**/*.py")}
    assert folders == set(PROJECT["tool"]["setuptools"]["packages"])


def test_binder_starts_with_one_worker():
    told = subprocess.run([ROOT / "start", "sh", "-c", 'echo "$FORESIGHT_WORKERS $1"', "sh", "an argument"],
                          capture_output=True, text=True, check=True).stdout
    assert told == "1 an argument\n"


@pytest.mark.parametrize("folder", ["lib", "tests"])
def test_what_is_imported_is_required(folder):
    distributions = packages_distributions()
    optional = {"torchvision", "backpack"}   # for the download alone; a second opinion in tests
    for path in ROOT.glob(f"{folder}/**/*.py"):
        for name in imported(path) - set(sys.stdlib_module_names) - optional - {"lib", "tests"}:
            required = {distribution.lower() for distribution in distributions.get(name, [name])} & set(pins())
            assert required or name in neighbours(path), f"{path} imports {name}"


def imported(path):
    """The top-level names of the modules that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


def neighbours(path):
    return {other.stem for other in path.parent.glob("*.py")}


def test_torchvision_stays_out():
    assert not {"torchvision", "backpack-for-pytorch"} & set(pins())


def test_git_ignores_what_runs_leave_and_not_the_code():
    def ignored(path):
        return subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT).returncode == 0

    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    assert not any(map(ignored, ["lib/run.py", "lib/scorers/obd.py", "outputs/mnist/results.jsonl",
                                 "outputs/mnist/tables/a.csv"]))
    assert all(map(ignored, [".venv/bin/python", "outputs/quick/results.jsonl", "outputs/mnist/html/a.html",
                             "outputs/mnist/results.jsonl.lock", "a.partial.ipynb"]))


def test_script_is_plain_sh_and_runs_from_anywhere(tmp_path):
    assert subprocess.run(["sh", "-n", ROOT / "run_all.sh"]).returncode == 0
    active = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    (tmp_path / "python").symlink_to(sys.executable)
    # A link to a virtual environment's Python is not in that environment: hand it the packages by path.
    active["PYTHONPATH"] = ":".join(path for path in sys.path if path.endswith("site-packages"))
    (tmp_path / "link").symlink_to(ROOT / "run_all.sh")
    for script in (ROOT / "run_all.sh", tmp_path / "link"):
        done = subprocess.run([script, "--help"], cwd=tmp_path, env=active, capture_output=True, text=True)
        assert done.returncode == 0 and "--scheduler" in done.stdout


def test_script_says_what_is_missing_where_python_is_too_old(tmp_path):
    if (ROOT / ".venv/bin/python").exists():
        pytest.skip("there is an environment beside the script already")
    for tool in ("dirname", "sh"):
        (tmp_path / tool).symlink_to(f"/bin/{tool}" if tool == "sh" else "/usr/bin/dirname")
    done = subprocess.run(["/bin/sh", ROOT / "run_all.sh"], env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 2 and "Python 3.11 or newer" in done.stderr
