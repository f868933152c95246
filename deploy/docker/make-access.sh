#!/bin/sh
# Make what lets nodes in, where it is not there yet: make-access.sh NODES
#
# The coordinator's access folder, and in /credentials a token of its own for each of node1, node2 ...
# A node takes the first one that no other node of this host uses. Run again, it adds what is
# missing, renews the tokens that are older than 300 days (they hold for 365; the old ones hold for
# another day), and leaves the rest alone.
set -eu
nodes=${1:?how many nodes}
access=${ACCESS:-/var/lib/partsum/access}
credentials=${CREDENTIALS:-/credentials}
if [ ! -e "$access/operator.toml" ]; then
    partsum certs init --folder "$access" >/dev/null
    echo "made the authority, and the coordinator's certificate"
fi
made=0
number=0
while [ "$number" -lt "$nodes" ]; do
    number=$((number + 1))
    name=node$number
    target=$credentials/$name.credentials.toml
    [ -n "$(find "$target" -mtime -300 2>/dev/null)" ] && continue
    draft=$credentials/.$name.new
    rm -f "$draft"
    # A name that is registered has a token that grows old, or it was interrupted before its file
    # was in place.
    partsum tokens node "$name" --folder "$access" --out "$draft" >/dev/null 2>&1 ||
        partsum tokens rotate "$name" --folder "$access" --out "$draft" >/dev/null
    mv "$draft" "$target"
    made=$((made + 1))
done
echo "made the tokens of $made nodes; $((nodes - made)) had theirs"
