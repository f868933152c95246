#!/bin/sh -e
# Compile the .proto files into the Python beside them; `generate.sh OUT` writes into OUT instead.
# The generator is pinned to the oldest release that we support: generated code runs on its own
# protobuf release and on newer ones only. It lives in a virtual environment of its own.
cd "$(dirname "$0")"
out="${1:-.}"
tools="${PARTSUM_PROTO_TOOLS:-../.venv-protos}"
if [ ! -x "$tools/bin/protoc-gen-mypy" ]; then
    "${PYTHON:-python3}" -m venv "$tools"
    "$tools/bin/pip" install --quiet --disable-pip-version-check \
        'grpcio-tools==1.71.2' 'mypy-protobuf==3.7.0' 'setuptools<81'
fi
PATH="$tools/bin:$PATH" "$tools/bin/python" -W ignore -m grpc_tools.protoc -I. \
    --python_out="$out" --grpc_python_out="$out" \
    --mypy_out=quiet:"$out" --mypy_grpc_out=quiet:"$out" \
    $(find partsum -name '*.proto' | sort)
