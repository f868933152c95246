#!/bin/sh
# Install the system packages that some tests use, where that is possible: as root, with apt.
#
# Never fails: a test whose program is not here skips, and says so. One more package is one more word.
PACKAGES="prometheus chromium"

missing=""
for package in $PACKAGES; do
    dpkg-query --show --showformat='${Status}' "$package" 2>/dev/null |
        grep -q "install ok installed" || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "not installed, and this is not root with apt:$missing; some tests will skip" >&2
    exit 0
fi

# Debian starts a daemon as soon as it is installed, unless this file says no.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
fi
install() {
    # shellcheck disable=SC2086 # several words are several packages
    DEBIAN_FRONTEND=noninteractive timeout 300 \
        apt-get install --yes --quiet --no-install-recommends $missing </dev/null >"$log" 2>&1
}
log=$(mktemp)
if install || { timeout 120 apt-get update --quiet >/dev/null 2>&1 && install; }; then
    echo "installed:$missing"
else
    tail -n 3 "$log" >&2
    echo "could not install:$missing; some tests will skip" >&2
fi
rm -f "$log"
exit 0
