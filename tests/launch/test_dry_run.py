"""What the launch scripts would do, and what they do with a cloud and a worker of our own."""

import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted(LAUNCH.rglob("*.sh")) + sorted(LAUNCH.rglob("*.sbatch"))
TPU = {"TPU_NAME": "pod", "ZONE": "us-west4-a", "ACCELERATOR_TYPE": "v5litepod-16", "BUCKET": "b"}
XPK = {"WORKLOAD": "w", "CLUSTER": "c", "IMAGE": "i", "ZONE": "z", "PROJECT_ID": "p", "CHIP": "v5e"}
RUN = ["configs/tiny.py:stage=all", "runs/my tiny", "--config.steps=3"]
TRAIN = "vljax train --config=configs/tiny.py:stage=all '--config.workdir=runs/my tiny'"
ON = "gcloud compute tpus tpu-vm ssh pod --zone=us-west4-a --worker="
QUEUE = (
    "gcloud compute tpus queued-resources create pod --zone=us-west4-a --node-id=pod "
    "--accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite"
)


def call(script: str, *args: str, env=None, cwd=ROOT) -> subprocess.CompletedProcess:
    plain = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    command = ["bash", str(LAUNCH / script), *args]
    return subprocess.run(command, env=plain | (env or {}), cwd=cwd, capture_output=True, text=True)


def dry(script: str, *args: str, env=None) -> list[str]:
    done = call(script, *args, "--dry-run", env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: str(p.relative_to(LAUNCH)))
def test_bash_reads_it(script):
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    if script.stat().st_mode & 0o100 or script.suffix == ".sbatch":
        text = script.read_text()
        assert text.startswith("#!/usr/bin/env bash\n") and "\nset -euo pipefail\n" in text


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="apt-get install shellcheck")
def test_shellcheck_has_nothing_to_say():
    done = subprocess.run(["shellcheck", "-x", *SCRIPTS], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_slurm_has_one_task_a_gpu_that_sees_all_gpus():
    [command] = dry("slurm/train.sbatch", *RUN)
    wanted = f"srun --kill-on-bad-exit=0 --wait=60 {TRAIN} --distributed --config.steps=3"
    assert command == wanted
    for name in ("train", "bench"):
        text = (LAUNCH / f"slurm/{name}.sbatch").read_text()
        options = dict(
            line.removeprefix("#SBATCH --").split("=")
            for line in text.splitlines()
            if line.startswith("#SBATCH") and "=" in line
        )
        assert options["ntasks-per-node"] == "8" and options["gres"] == "gpu:8"
        assert not any(name.startswith("gpus-per") for name in options)


def test_bench_trains_a_few_steps_under_each_strategy():
    got = dry("slurm/bench.sbatch", "configs/tiny.py", "runs/b", env={"STRATEGIES": "dp fsdp_tp"})
    assert [shlex.split(line)[5:7] for line in got] == [
        ["--config=configs/tiny.py:sharding=dp", "--config.workdir=runs/b/dp"],
        ["--config=configs/tiny.py:sharding=fsdp_tp", "--config.workdir=runs/b/fsdp_tp"],
    ]
    [line] = dry("slurm/bench.sbatch", *RUN, env={"STRATEGIES": "tp"})
    assert "--config=configs/tiny.py:stage=all,sharding=tp " in line
    assert line.endswith("--config.steps=20 --config.log_every=1 --config.save_every=20 " + RUN[2])


def test_one_machine_tells_what_it_would_start_and_stop(tmp_path):
    folder = tmp_path / "none"
    got = dry("slurm/one_machine.sh", "start", str(folder), env={"SLURM_CPUS": "3"})
    assert f"slurmd -f {folder}/slurm.conf -N localhost" in got
    assert "NodeName=localhost NodeAddr=127.0.0.1 CPUs=3 Gres=gpu:0 State=UNKNOWN" in got
    assert f"rm -rf {folder}" in dry("slurm/one_machine.sh", "stop", str(folder))
    assert not folder.exists()


def test_tpu_vm_scripts_print_gcloud_s_commands():
    assert dry("tpu_vm/queue.sh", "--spot", env=TPU) == [f"{QUEUE} --spot"]
    assert dry("tpu_vm/create.sh", env=TPU | {"ACCELERATOR_TYPE": "v6e-8", "PROJECT_ID": "p"}) == [
        "gcloud compute tpus tpu-vm create pod --zone=us-west4-a --project=p "
        "--accelerator-type=v6e-8 --version=v2-alpha-tpuv6e"
    ]
    [line] = dry("tpu_vm/run.sh", *RUN, env=TPU)
    assert line.startswith(f"{ON}all ")
    inner = shlex.split(line)[-1].removeprefix("--command=")
    train = f"{TRAIN} --distributed --config.steps=3"
    assert inner == f"bash vljax/launch/tpu_vm/on_worker.sh start v5e {train}"
    assert dry("tpu_vm/logs.sh", env=TPU)[0].startswith(f"{ON}0 ")
    assert len(dry("tpu_vm/setup.sh", env=TPU)) == 3
    assert [line.split()[3:5] for line in dry("tpu_vm/delete.sh", env=TPU)] == [
        ["queued-resources", "delete"],
        ["tpu-vm", "delete"],
    ]
    assert dry("tpu_vm/keep.sh", *RUN, env=TPU)[1:] == [
        *dry("tpu_vm/queue.sh", "--spot", env=TPU),
        *dry("tpu_vm/setup.sh", env=TPU),
        line,
    ]


@pytest.mark.skipif(not shutil.which("gcloud"), reason="gcloud is not installed")
def test_gcloud_knows_these_commands(tmp_path):
    scripts = [("create", "--spot"), ("queue", "--spot"), ("setup",), ("run", *RUN), ("delete",)]
    lines = [
        line
        for name, *args in scripts
        for line in dry(f"tpu_vm/{name}.sh", *args, env=TPU)
        if line.startswith("gcloud")
    ]
    file = tmp_path / "commands.json"
    file.write_text(json.dumps([{"command_string": line} for line in lines]))
    done = subprocess.run(
        ["gcloud", "meta", "lint-gcloud-commands", f"--commands-file={file}"],
        env=os.environ | {"CLOUDSDK_CONFIG": str(tmp_path), "CLOUDSDK_CORE_DISABLE_PROMPTS": "1"},
        capture_output=True,
        text=True,
    )
    told = [(x["success"], x["error_message"]) for x in json.loads(done.stdout)]
    assert told == [(True, None)] * len(lines), told


def test_xpk_is_given_the_same_run():
    [line] = dry("gke/xpk.sh", *RUN, env=XPK | {"TPU_TYPE": "v5litepod-16", "SLICES": "2"})
    words = shlex.split(line)
    assert words[:3] == ["xpk", "workload", "create"] and "--num-slices=2" in words
    inner = f"source launch/env/v5e.sh && exec {TRAIN} --distributed --config.steps=3"
    assert words[-1] == f"--command={inner}"


@pytest.mark.parametrize(
    ("script", "args", "env", "told"),
    [
        ("slurm/train.sbatch", RUN[:1], {}, "got 1 arguments, expected: CONFIG WORKDIR"),
        ("slurm/train.sbatch", RUN, {"CHIP": "v9"}, "CHIP: got 'v9', expected a name in"),
        ("slurm/train.sbatch", RUN, {}, "got no SLURM job; submit it: sbatch"),
        ("slurm/one_machine.sh", ["begin", "x"], {}, "got 'begin', expected start or stop"),
        ("tpu_vm/create.sh", [], {}, "TPU_NAME: got nothing, expected it in the environment"),
        ("tpu_vm/queue.sh", ["--cheap"], TPU, "got '--cheap', expected --spot or --dry-run"),
        ("tpu_vm/run.sh", [], TPU | {"ACCELERATOR_TYPE": "v9-8"}, "got 'v9-8', expected v4-N"),
        ("tpu_vm/run.sh", RUN[:1], TPU, "got 1 arguments, expected: CONFIG WORKDIR"),
        ("tpu_vm/on_worker.sh", ["go"], {}, "got 'go', expected setup, start, stop or status"),
        ("gke/xpk.sh", RUN, XPK, "DEVICE_TYPE: got nothing"),
    ],
)
def test_a_bad_call_is_told_in_one_sentence(script, args, env, told):
    done = call(script, *args, env=env)
    assert done.returncode == 2 and told in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_jax_takes_what_the_gpus_files_set():
    code = "import jax; print(jax.numpy.ones(2).sum(), jax.config.jax_optimization_level)"
    shell = f"source launch/env/h100.sh; JAX_PLATFORMS=cpu exec {sys.executable} -c '{code}'; "
    done = subprocess.run(["bash", "-c", shell], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "2.0 O1\n", done.stderr
    old = [f.name for f in (LAUNCH / "env").iterdir() if "enable_async" in f.read_text()]
    assert not old


COMPILE = """
import sys, jax, jax.numpy as jnp
from jax.experimental import topologies
device = topologies.get_topology_desc(platform="tpu", topology_name=sys.argv[1]).devices[0]
x = jax.ShapeDtypeStruct((8,), jnp.float32, sharding=jax.sharding.SingleDeviceSharding(device))
print(jax.jit(jnp.sin).lower(x).compile() is not None)
"""


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="pip install libtpu")
@pytest.mark.parametrize("topology", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_libtpu_takes_what_a_tpu_s_file_sets(topology):
    """It ends the process at a flag that it does not know; no TPU needs to be there."""
    shell = f"source launch/env/{topology.split(':')[0]}.sh; export JAX_PLATFORMS=cpu; exec "
    alone = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
    alone |= {"TPU_ACCELERATOR_TYPE": "v5litepod-4", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    done = subprocess.run(
        ["bash", "-c", shell + shlex.join([sys.executable, "-c", COMPILE, topology])],
        env=os.environ | alone,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "True\n", done.stderr


# A cloud of files: what the queued resource is in, one line a look, and what the worker tells.
CLOUD = """#!/usr/bin/env bash
next() { head -n 1 "$1"; [ "$(wc -l <"$1")" = 1 ] || sed -i 1d "$1"; }
case "$*" in
  *"queued-resources describe"*) next states ;;
  *"on_worker.sh status"*) next told ;;
  *) echo "$3 $4 ${*: -1}" | cut -c1-90 >>calls ;;
esac
"""


def test_keep_starts_again_after_a_preemption_and_ends_with_the_run(tmp_path):
    gcloud = tmp_path / "gcloud"
    gcloud.write_text(CLOUD)
    gcloud.chmod(0o755)
    # keep.sh looks; where that is not ACTIVE, queue.sh looks again
    states = ["", "", "PROVISIONING", "PROVISIONING", "ACTIVE", "ACTIVE", "SUSPENDED", "SUSPENDED"]
    (tmp_path / "states").write_text("\n".join([*states, "ACTIVE"]) + "\n")
    (tmp_path / "told").write_text("absent\nrunning\nabsent\nended 0\n")
    env = TPU | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PAUSE": "0", "TMPDIR": str(tmp_path)}
    done = call("tpu_vm/keep.sh", *RUN, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    kinds = [" ".join(line.split()[:2]) for line in calls]
    begin = ["tpu-vm scp", "tpu-vm ssh", "tpu-vm ssh"]  # copy, set up, start
    assert kinds == [
        "queued-resources create",
        *begin,
        "queued-resources delete",
        "queued-resources create",
        *begin,
    ]
    assert "on_worker.sh start v5e vljax train" in calls[3]
    (tmp_path / "told").write_text("ended 1\n")
    assert call("tpu_vm/keep.sh", *RUN, env=env, cwd=tmp_path).returncode == 1


@pytest.mark.skipif(not shutil.which("tmux"), reason="apt-get install tmux")
def test_a_worker_runs_one_in_tmux_and_stops_it_with_sigterm(tmp_path):
    shutil.copytree(LAUNCH, tmp_path / "launch")
    trainer = "trap 'echo saved; exit 143' TERM; echo $LIBTPU_INIT_ARGS; while :; do sleep .1; done"
    env = {"TMUX_TMPDIR": str(tmp_path)}

    def worker(*args: str) -> str:
        done = call(str(tmp_path / "launch/tpu_vm/on_worker.sh"), *args, env=env, cwd="/")
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def until(wanted) -> None:
        end = time.monotonic() + 60
        while not wanted():
            assert time.monotonic() < end
            time.sleep(0.1)

    log = tmp_path / "run.log"
    try:
        assert worker("status") == "absent"
        assert "started" in worker("start", "v6e", "bash", "-c", trainer)
        until(lambda: log.exists() and "--xla_tpu_scoped_vmem_limit_kib=98304" in log.read_text())
        assert worker("status") == "running"
        assert "runs already" in worker("start", "v6e", "bash", "-c", trainer)
        worker("stop")
        until(lambda: worker("status") == "ended 143")
        assert log.read_text().splitlines()[-1] == "saved"
        assert "nothing runs" in worker("stop")
    finally:
        subprocess.run(["tmux", "kill-server"], env=os.environ | env, capture_output=True)
