#!/bin/sh
# Make what lets nodes in, and hand it to Kubernetes: make-secrets.sh [NODES] [NAMESPACE]
#
# Needs partsum and kubectl. The access folder stays here, in ./access, and with it the authority's
# key; the cluster gets what the coordinator reads, and one credentials file for each pod. Run again
# after `partsum tokens revoke` or for more nodes: the coordinator heeds it within a minute or two.
set -eu
nodes=${1:-4} namespace=${2:-partsum}
umask 077
[ -e access/operator.toml ] || partsum certs init --folder access >/dev/null
mkdir -p credentials
number=0
while [ "$number" -lt "$nodes" ]; do
    file=credentials/partsum-node-$number.credentials.toml
    [ -e "$file" ] || partsum tokens node "partsum-node-$number" --folder access --out "$file" >/dev/null
    number=$((number + 1))
done
kubectl get namespace "$namespace" >/dev/null 2>&1 || kubectl create namespace "$namespace"
secret() {
    name=$1
    shift
    kubectl create secret generic "$name" --namespace "$namespace" "$@" \
        --dry-run=client --output yaml | kubectl apply --filename -
}
secret partsum-access --from-file access/authority.crt --from-file access/server.crt \
    --from-file access/server.key --from-file access/members.json \
    --from-file access/operator.toml
secret partsum-nodes --from-file credentials
