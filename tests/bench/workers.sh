#!/bin/sh
# What a second worker costs on one machine: one session's decoding rate with one worker and with two, by turns. Both have
# all cores, and one stage computes at a time, so the cores are the same; what two take longer are hops.
#
#   workers.sh [--bin DIR] [--shape NAME] [--layers V/T] [--rounds N] [--steps N]
set -eu
export LC_ALL=C
bin=build/bin shape=paligemma-3b-224 layers='' rounds=5 steps=32
while [ $# -gt 1 ]; do
    case $1 in
    --bin) bin=$2 ;;
    --shape) shape=$2 ;;
    --layers) layers=$2 ;;
    --rounds) rounds=$2 ;;
    --steps) steps=$2 ;;
    *) break ;;
    esac
    shift 2
done
if [ $# -gt 0 ]; then
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
results=$(mktemp)
trap 'rm -f "$results"' EXIT
for round in $(seq "$rounds"); do
    for workers in 1 2; do
        "$bin/espalier" bench --shape "$shape" ${layers:+--layers "$layers"} --workers "$workers" --phases decode --batch 1 \
            --steps "$steps" --json | python3 -c '
import json, sys
c = json.load(sys.stdin)["cluster"]
print(sys.argv[1], c["decode"][0]["interval"]["median"], c["hop"]["seconds"])' "$workers" >>"$results"
        tail -n 1 "$results" | awk '{ printf "  workers %d: %.2f tokens/s, a hop %.0f us\n", $1, 1 / $2, 1e6 * $3 }' >&2
    done
done
python3 - "$results" <<'PY'
import statistics
import sys

rows = [line.split() for line in open(sys.argv[1])]
mid = {w: statistics.median(float(r[1]) for r in rows if r[0] == w) for w in "12"}
hop = statistics.median(float(r[2]) for r in rows if r[0] == "2")
print("one worker %.3f tokens/s, two %.3f: %+.1f %%; a hop %.0f us (medians of %d rounds)"
      % (1 / mid["1"], 1 / mid["2"], 100 * (mid["1"] / mid["2"] - 1), 1e6 * hop, len(rows) // 2))
PY
