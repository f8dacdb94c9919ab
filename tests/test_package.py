"""What is published: the wheel answers outside the repository, with nothing of it beside it."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    source = tmp_path_factory.mktemp("source") / "vljax"
    told = ["git", "-C", ROOT, "ls-files"]
    for name in subprocess.run(told, capture_output=True, text=True, check=True).stdout.split("\n"):
        if name and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source]
    subprocess.run(build, check=True, capture_output=True)
    (found,) = out.glob("*.whl")
    return found


def test_the_wheel_holds_what_the_package_needs_and_no_more(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for needed in (
        "vljax/py.typed",
        "vljax/weights/tiny/manifest.json",
        "vljax/samples/sample.mp4",
        "vljax/serve/page/page.html",
        *(f"vljax/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")),
    ):
        assert needed in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"vljax"}  # no tests beside it
    assert any(name.endswith("LICENSE") for name in names)


@pytest.mark.slow
def test_it_answers_and_trains_in_another_folder(wheel, tmp_path):
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    zipfile.ZipFile(wheel).extractall(site)
    env = os.environ | {"PYTHONPATH": str(site)}

    def run(*argv):
        command = [sys.executable, "-P", "-m", "vljax.cli.main", *argv]
        done = subprocess.run(command, cwd=work, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    code = "import vljax; print(vljax.__file__)"
    where = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=work, env=env, capture_output=True, text=True
    )
    assert where.stdout.strip() == str(site / "vljax/__init__.py")
    asked = run("chat", "--ask", "What happens, and what do you hear?")
    assert "A green car moves left, and I hear a drum." in asked
    table = run("train", "--config=configs/vision_pretrain.py:size=13b", "--print-parameters")
    assert "22,891,520" in table  # what of 13B is trained
