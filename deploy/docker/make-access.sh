#!/bin/sh
# Make what lets nodes in, where it is not there yet: make-access.sh NODES
#
# The coordinator's access folder, and in /credentials a token of its own for each of node1, node2 ...
# A node takes the first one that no other node of this host uses. Run again, it adds what is
# missing and leaves the rest alone.
set -eu
nodes=${1:?how many nodes}
access=/var/lib/partsum/access
[ -e "$access/operator.toml" ] || partsum certs init --folder "$access"
number=0
while [ "$number" -lt "$nodes" ]; do
    number=$((number + 1))
    name=node$number
    target=/credentials/$name.credentials.toml
    [ -e "$target" ] && continue
    draft=/credentials/.$name.new
    rm -f "$draft"
    # Registered already, and yet no file: it was interrupted between the two.
    partsum tokens node "$name" --folder "$access" --out "$draft" >/dev/null ||
        partsum tokens rotate "$name" --grace 0 --folder "$access" --out "$draft" >/dev/null
    mv "$draft" "$target"
    echo "made the token of $name"
done
