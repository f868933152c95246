#!/bin/sh
# Fail if the generated code is not what the .proto files give.
set -e
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
PARTSUM_PROTO_TOOLS="$PWD/.venv-protos" sh protos/generate.sh "$out"
for file in $(cd "$out" && find . -type f); do
    cmp -s "$out/$file" "protos/$file" || {
        echo "protos/$file is not what its .proto gives; run protos/generate.sh" >&2
        exit 1
    }
done
echo "generated protocol code is up to date"
