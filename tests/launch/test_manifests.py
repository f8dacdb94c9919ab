"""The manifests against published schemas: Kubernetes' own, and JobSet's as Kubeflow has it."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

kubernetes_validate = pytest.importorskip("kubernetes_validate")
jobset = pytest.importorskip("kubeflow_trainer_api.models.jobset_v1alpha2_job_set")

ROOT = Path(__file__).parents[2]
RUN = ["--image=i", "--claim=c", "--config=configs/tiny.py:stage=all", "--workdir=/data/my run"]
TPU = ["jobset_tpu", "clips", *RUN, "--chip=v5e", "--topology=4x8", "--slices=2"]
GPU = ["jobset_gpu", "clips", *RUN, "--chip=h100", "--hosts=3"]
JOB = ["job_gpu", "clips", *RUN, "--chip=a100", "--hosts=2"]


def call(*args: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "launch/gke/manifest.py"), *args, "--dry-run"]
    return subprocess.run(command, capture_output=True, text=True)


def rendered(args: list[str]) -> dict[str, dict]:
    done = call(*args, "--config.steps=3")
    assert done.returncode == 0, done.stderr
    return {document["kind"]: document for document in yaml.safe_load_all(done.stdout)}


def validate(document: dict) -> None:
    kubernetes_validate.validate(document, "1.33", strict=True)


@pytest.mark.parametrize("args", [TPU, GPU], ids=["tpu", "gpu"])
def test_jobsets_have_jobset_s_fields_alone_and_a_valid_job(args):
    documents = rendered(args)
    document = documents.pop("JobSet")
    for other in documents.values():
        validate(other)
    read = jobset.JobsetV1alpha2JobSet.from_dict(document)
    assert read.to_dict() == document  # what the schema does not know would be lost
    policy = document["spec"]["failurePolicy"]
    assert [r["action"] for r in policy["rules"]] == ["RestartJobSetAndIgnoreMaxRestarts"]
    assert document["spec"]["successPolicy"]["operator"] in ("All", "Any")
    [job] = document["spec"]["replicatedJobs"]
    meta = {"name": f"clips-{job['name']}-0"}
    validate({"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, **job["template"]})


@pytest.mark.parametrize("wrong", ["replica", "completionmode", "terminationGraceSeconds"])
def test_a_misspelt_field_is_noticed(wrong):
    """So that the test above can fail, at each level."""
    document = rendered(TPU)["JobSet"]
    job = document["spec"]["replicatedJobs"][0]
    levels = {
        "replica": job,
        "completionmode": job["template"]["spec"],
        "terminationGraceSeconds": job["template"]["spec"]["template"]["spec"],
    }
    levels[wrong][wrong] = 1
    assert jobset.JobsetV1alpha2JobSet.from_dict(document).to_dict() != document


@pytest.mark.parametrize(
    ("args", "hosts", "chips"),
    [
        (TPU, 8, {"google.com/tpu": 4}),
        ([*TPU[:-2], "--topology=2x2"], 1, {"google.com/tpu": 4}),
        (GPU, 3, {"nvidia.com/gpu": 8}),
        (JOB, 2, {"nvidia.com/gpu": 8}),
    ],
)
def test_one_indexed_pod_a_host_runs_the_command(args, hosts, chips):
    documents = rendered(args)
    if "Job" in documents:
        job = documents["Job"]["spec"]
    else:
        job = documents["JobSet"]["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (job["completionMode"], job["parallelism"], job["completions"]) == (
        *("Indexed", hosts, hosts),
    )
    pod = job["template"]["spec"]
    assert pod["serviceAccountName"] == documents["ServiceAccount"]["metadata"]["name"]
    [container] = pod["containers"]
    assert container["resources"]["limits"] == chips
    [script] = container["args"]
    sourced, words = script.split(" && ")
    assert (ROOT / sourced.removeprefix("source ")).is_file()
    assert shlex.split(words) == [
        *("exec", "vljax", "train", "--config=configs/tiny.py:stage=all"),
        *("--config.workdir=/data/my run", "--distributed", "--config.steps=3"),
    ]
    # What saved a step because it was told to go (143) is no failure.
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [143]


def test_a_plain_job_has_the_headless_service_that_jax_asks_for():
    documents = rendered(JOB)
    for document in documents.values():
        validate(document)
    service, job = documents["Service"], documents["Job"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert job["spec"]["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    allowed = {r for rule in documents["Role"]["rules"] for r in rule["resources"]}
    assert allowed == {"pods", "services", "jobs"}


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["jobset_tpu", "n", *RUN, "--chip=v5e"], "--topology: got nothing"),
        ([*TPU[:-2], "--topology=3x3"], "--topology: got 9 chips, expected a multiple of 4"),
        ([*TPU[:-2], "--topology=big"], "--topology: got big, expected such as 4x4"),
        ([*GPU, "--chip=v5e"], "--chip: got v5e, which is not one of jobset_gpu"),
        ([*GPU, "--workdir=runs/x"], "--workdir: got runs/x, expected a folder below /data"),
        ([*GPU, "stray"], "got stray, expected flags of vljax train"),
    ],
)
def test_a_bad_call_is_told_in_a_sentence(args, told):
    done = call(*args)
    assert done.returncode != 0 and told in done.stderr.splitlines()[-1]
