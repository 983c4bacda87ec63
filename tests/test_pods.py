"""The launchers of pods, by the rules of what reads them: Kubernetes' schemas, JobSet's fields, bash and SLURM."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

POD = Path(__file__).parents[1] / "scripts" / "pod"

# The fields of jobset.x-k8s.io/v1alpha2 that may be set, but for those of the Job template, which Kubernetes defines.
JOB_SET = {
    "spec": {"replicatedJobs", "network", "successPolicy", "failurePolicy", "startupPolicy", "suspend", "coordinator"}
    | {"managedBy", "ttlSecondsAfterFinished", "volumeClaimPolicies"},
    "replicatedJobs": {"name", "groupName", "template", "replicas", "dependsOn"},
    "failurePolicy": {"maxRestarts", "restartStrategy", "rules"},
}


@pytest.fixture
def job_set():
    return yaml.safe_load((POD / "jobset.yaml").read_text())


def test_the_job_set_has_fields_that_there_are(job_set):
    assert (job_set["apiVersion"], job_set["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert set(job_set) == {"apiVersion", "kind", "metadata", "spec"}
    spec = job_set["spec"]
    assert set(spec) <= JOB_SET["spec"] and set(spec["failurePolicy"]) <= JOB_SET["failurePolicy"]
    for job in spec["replicatedJobs"]:
        assert set(job) <= JOB_SET["replicatedJobs"] and {"name", "template"} <= set(job)
        assert job["template"]["spec"]["parallelism"] == job["template"]["spec"]["completions"]


def test_its_jobs_are_valid_kubernetes(job_set):
    validate = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate, of the group dev")
    for job in job_set["spec"]["replicatedJobs"]:
        whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": job["name"]}, **job["template"]}
        validate.validate(whole, "1.31", strict=True)
        whole["spec"]["template"]["spec"]["containers"][0]["comand"] = ["tokvid"]
        with pytest.raises(validate.ValidationError):
            validate.validate(whole, "1.31", strict=True)


def test_its_slice_has_as_many_chips_as_its_pods_ask_for(job_set):
    (job,) = job_set["spec"]["replicatedJobs"]
    pods, pod = job["template"]["spec"]["completions"], job["template"]["spec"]["template"]["spec"]
    rows, columns = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    assert pods * pod["containers"][0]["resources"]["limits"]["google.com/tpu"] == rows * columns


def test_its_command_is_one_of_tokvid(job_set):
    from tokvid.cli.main import parser

    (container,) = job_set["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
    program, *arguments = container["command"]
    # The workdir lies where the image has it, not here.
    arguments = [argument if argument != "/runs/base" else "runs-base" for argument in arguments]
    options, rest = parser().parse_known_args(arguments)
    assert program == "tokvid" and options.command == "train" and options.distributed and not rest


@pytest.mark.parametrize("name", ["slurm.sbatch", "tpu_vm.sh"])
def test_the_launchers_are_bash(name):
    done = subprocess.run(["bash", "-n", POD / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_slurm_takes_its_options():
    """Where there is a SLURM with nodes like these; it says when the job would start."""
    if not shutil.which("sbatch"):
        pytest.skip("needs sbatch, of SLURM")
    if subprocess.run(["sinfo"], capture_output=True).returncode:
        pytest.skip("needs a SLURM that answers")
    command = ["sbatch", "--test-only", "--nodes", "2", POD / "slurm.sbatch", "train", "transformer"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "to start at" in done.stderr, done.stderr
