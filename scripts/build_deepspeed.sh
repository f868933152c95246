#!/bin/bash
# Install DeepSpeed into the active virtual environment, its C++ ops built now and not at run time.
#
# Built on first use, an op takes minutes in the middle of a run, and a build that is killed leaves
# a lock that blocks the next one. Needs torch, setuptools, wheel and ninja in the environment, and
# g++; on a CUDA host also the CUDA toolkit (nvcc) of torch's version.
set -euo pipefail
cd "$(dirname "$0")/.."
readonly version=0.19.8
: "${VIRTUAL_ENV:?activate the virtual environment first: . .venv/bin/activate}"
readonly log="$VIRTUAL_ENV/deepspeed-build.log"

# An image is built where no GPU is to be seen: there PARTSUM_DEVICE=cuda says what it is for.
device=${PARTSUM_DEVICE:-auto}
case $device in
    auto | cpu | cuda) ;;
    *) echo "PARTSUM_DEVICE=$device is none of auto, cpu, cuda" >&2 && exit 2 ;;
esac
if [ "$device" = cuda ] || { [ "$device" = auto ] &&
    python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; }; then
    if [ "$device" = cuda ]; then export DS_ACCELERATOR=cuda; fi
    device="CUDA"
    options=(DS_BUILD_CPU_ADAM=1)
else
    device="CPU"
    options=(DS_ACCELERATOR=cpu DS_BUILD_CPU_ADAM=1 DS_BUILD_SHM_COMM=1)
    export DS_ACCELERATOR=cpu
fi

# Takes one step: ops are built for this very processor, and one copied from another may not run.
works() {
    python - "$version" "$device" >"$log.check" 2>&1 <<'PYTHON'
import sys
from importlib import metadata

version, device = sys.argv[1:]
if metadata.version("deepspeed") != version:
    sys.exit("another version of DeepSpeed is installed")
from deepspeed.git_version_info import installed_ops

needed = ["cpu_adam", "deepspeed_shm_comm"] if device == "CPU" else ["cpu_adam"]
missing = [op for op in needed if not installed_ops.get(op)]
if missing:
    sys.exit(f"DeepSpeed is installed without {missing}")
import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam

weight = torch.nn.Parameter(torch.ones(64))
weight.grad = torch.ones(64)
DeepSpeedCPUAdam([weight], lr=0.1).step()
assert abs(float(weight.detach()[0]) - 0.9) < 1e-3
PYTHON
}

if works; then
    echo "DeepSpeed $version is there, with its ops"
    exit 0
fi
for tool in g++ ninja; do
    if ! command -v "$tool" >/dev/null; then
        echo "building DeepSpeed's ops needs $tool, which is not here" >&2
        exit 1
    fi
done
jobs=$(nproc)
echo "Building DeepSpeed $version and its ops for $device with $jobs jobs: about 4 minutes on 2 cores"
echo "(what it says goes to $log)"
# --no-cache-dir: pip would take an earlier wheel from its cache, even one without ops.
# --force-reinstall --no-deps: the version may be right and only the ops be missing.
if ! { env "${options[@]}" DS_ENABLE_NINJA=1 MAX_JOBS="$jobs" \
    pip install --no-cache-dir --no-build-isolation --force-reinstall --no-deps \
    --constraint constraints.txt "deepspeed==$version" &&
    pip install --constraint constraints.txt "deepspeed==$version"; } >"$log" 2>&1; then
    grep -m 5 'error:' "$log" >&2 || true
    tail -n 20 "$log" >&2
    echo "DeepSpeed could not be built; the whole log is $log" >&2
    exit 1
fi
if ! works; then
    tail -n 5 "$log.check" >&2
    echo "DeepSpeed was built, but its ops do not run; the build's log is $log" >&2
    exit 1
fi
echo "DeepSpeed $version and its ops are ready after $SECONDS s"
