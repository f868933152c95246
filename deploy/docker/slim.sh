#!/bin/bash
# Take out of a virtual environment what running partsum never opens: slim.sh VENV
#
# C++ headers, test suites, pip and symbol tables. What imports partsum and trains is left whole;
# the self-test trains with the result.
set -euo pipefail
packages=$(echo "${1:?virtual environment}"/lib/python3.*/site-packages)
before=$(du -sm "$packages" | cut -f1)
cd "$packages"
rm -rf torch/include torch/test torch/share torch/bin/protoc* torch/bin/*[Tt]est* \
    deepspeed/ops/csrc pip pip-*.dist-info "$1"/bin/pip*
# Test suites of the large packages only: some small ones import theirs.
find numpy scipy sklearn sympy networkx grpc joblib -type d -name tests -prune -exec rm -rf {} +
find deepspeed torch/lib -name '*.so' -exec strip --strip-unneeded {} +
echo "$packages: $before MiB before, $(du -sm . | cut -f1) MiB now"
