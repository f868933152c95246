#!/bin/sh
# Make the virtual environment: dependencies by pip with pinned versions, DeepSpeed with its ops.
set -e
"$PYTHON" - <<'CHECK' || exit 2
import sys
if sys.version_info < (3, 11):
    found = sys.version.split()[0]
    sys.exit(f"partsum needs Python 3.11 or newer; this is {found}. Try: make PYTHON=python3.11")
CHECK
if ! command -v g++ >/dev/null; then
    echo "partsum's set-up needs g++ to build DeepSpeed's ops: apt install g++" >&2
    exit 2
fi
[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
pip="$VENV/bin/pip --quiet"
echo "Setting up $VENV (once; some minutes, most of it PyTorch and DeepSpeed's C++ ops)"
echo "  1/3 PyTorch and the other packages"
# Torch comes first and pinned: an open range would fetch a CUDA build of gigabytes.
$pip install -c constraints.txt torch setuptools wheel ninja py-cpuinfo packaging
$pip install -c constraints.txt hatchling editables
$pip install -c constraints.txt --no-build-isolation -e '.[dev,docs,privacy,transformers]'
echo "  2/3 DeepSpeed"
PATH="$PWD/$VENV/bin:$PATH" VIRTUAL_ENV="$PWD/$VENV" bash scripts/build_deepspeed.sh
echo "  3/3 the protocol's generator"
PARTSUM_PROTO_TOOLS="$PWD/.venv-protos" PYTHON="$PYTHON" sh protos/generate.sh "$(mktemp -d)"
echo "Ready. Try: make demo"
