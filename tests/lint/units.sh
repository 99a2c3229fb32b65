#!/bin/sh
# What `make install` lays down: programs, units that name them, and what systemd says of the units where it is there.
#
#   units.sh CMAKE BUILD
set -u
export LC_ALL=C
cmake=${1:?usage: units.sh CMAKE BUILD}
build=${2:?usage: units.sh CMAKE BUILD}
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
failed=0

fail() {
    echo "FAILED: $*"
    failed=1
}

"$cmake" --install "$build" --prefix "$dir/usr" >"$dir/log" 2>&1 || {
    cat "$dir/log"
    exit 1
}
for file in bin/espalier bin/espalier-coordinator bin/espalier-worker lib/sysusers.d/espalier.conf \
    lib/systemd/system/espalier-coordinator.service lib/systemd/system/espalier-worker@.service \
    share/espalier/coordinator.env share/espalier/worker.env; do
    [ -f "$dir/usr/$file" ] || fail "$file was not installed"
done
cd "$dir/usr/lib/systemd/system" || exit 1
for unit in *.service; do
    if grep -n '@ESP' "$unit"; then
        fail "$unit has a name that was not filled in"
    fi
    # Every variable of its command line is in the example that it is set up with, and the other way round.
    example=$dir/usr/share/espalier/$(echo "$unit" | sed 's/espalier-\([a-z]*\).*/\1/').env
    for name in $(grep -o '\$[{A-Z}]*' "$unit" | tr -d '${}' | grep -v STATE | sort -u); do
        grep -q "^$name=" "$example" || fail "$unit wants $name, which $example does not set"
    done
    for name in $(sed -n 's/^\([A-Z]*\)=.*/\1/p' "$example"); do
        grep -q "\\\${*$name" "$unit" || fail "$example sets $name, which $unit does not use"
    done
done
if command -v systemd-analyze >/dev/null 2>&1; then
    cp 'espalier-worker@.service' 'espalier-worker@gpu1.service'
    systemd-analyze verify ./espalier-coordinator.service './espalier-worker@gpu1.service' >"$dir/verdict" 2>&1 ||
        fail "systemd-analyze verify"
    # It speaks of the system's own units too; ours are named.
    if grep 'espalier' "$dir/verdict"; then
        fail "systemd-analyze has something to say"
    fi
else
    echo "systemd is not here: its own opinion of the units was not asked"
fi
exit $failed
