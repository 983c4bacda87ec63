"""libtpu on machines without a TPU: `tokvid plan` compiles with it there, and JAX tries to start it."""

import glob
import importlib.util
import os

DEVICES = ("/dev/accel[0-9]*", "/dev/vfio/[0-9]*")  # patterns of the files of chips
# Keeps libtpu from querying Google's metadata server, which takes minutes, from warning about the unknown machine, and
# from refusing to be loaded twice on one machine, as it must on a real TPU.
ABSENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def tpu_devices() -> list[str]:
    """The files of this machine's TPU chips."""
    return sorted(file for pattern in DEVICES for file in glob.glob(pattern))


def quiet_without_tpu() -> None:
    """Where libtpu is installed and no TPU is there, sets what keeps it quiet. To be called before JAX starts."""
    if not tpu_devices() and importlib.util.find_spec("libtpu"):
        pretend_tpu()


def pretend_tpu() -> None:
    """Sets what libtpu needs to compile for TPUs that aren't there."""
    for variable, value in ABSENT.items():
        os.environ.setdefault(variable, value)
