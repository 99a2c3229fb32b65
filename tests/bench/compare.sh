#!/bin/sh
# The same work on Espalier and on llama.cpp, run by turns on one machine and one driver; see compare.md.
#
#   compare.sh [--in COMMAND] [--bin DIR] [--dir DIR] [--types 16,q8,q4] [--layers N] [--rounds N] [--phases decode,prefill]
#              [--engines espalier,vulkan,cpu] [--prefix TOKENS] [--steps N] [--threads N] [--device D]
#
#   --in COMMAND   what runs a command in another root, e.g. a chroot with a newer driver; the current folder must be
#                  the same in it. Everything that is measured runs there
#   --bin DIR      Espalier's programs, built for that root (build/bin)
#   --dir DIR      where models are made, 5 GB for 16 bits, and results kept (build/compare)
#   --keep         keep the models; otherwise each is removed once its rounds are done
set -eu
export LC_ALL=C
here=$(dirname "$0")
in='' bin=build/bin dir=build/compare types=16,q8,q4 layers=18 rounds=3 phases=decode,prefill
engines=espalier,vulkan,cpu prefix=260 steps=32 threads=$(nproc) device='' keep=''

usage() {
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
    exit 2
}
while [ $# -gt 0 ]; do
    case $1 in
    --keep) keep=1 && shift && continue ;;
    --in | --bin | --dir | --types | --layers | --rounds | --phases | --engines | --prefix | --steps | --threads | --device) ;;
    *) usage ;;
    esac
    [ $# -ge 2 ] || usage
    case $1 in
    --in) in=$2 ;;
    --bin) bin=$2 ;;
    --dir) dir=$2 ;;
    --types) types=$2 ;;
    --layers) layers=$2 ;;
    --rounds) rounds=$2 ;;
    --phases) phases=$2 ;;
    --engines) engines=$2 ;;
    --prefix) prefix=$2 ;;
    --steps) steps=$2 ;;
    --threads) threads=$2 ;;
    --device) device=$2 ;;
    esac
    shift 2
done

die() {
    echo "compare.sh: $*" >&2
    exit 1
}
has() { # has LIST ITEM
    case ",$1," in *",$2,"*) ;; *) return 1 ;; esac
}
command -v python3 >/dev/null || die "needs python3"
mkdir -p "$dir"
results=$dir/results.txt
: >"$results"
if has "$engines" espalier; then
    $in "$bin/espalier" version >/dev/null || die "$bin/espalier does not run${in:+ by '$in'}: build it there, see compare.md"
fi
if has "$engines" vulkan || has "$engines" cpu; then
    $in llama-bench --help >/dev/null 2>&1 || die "no llama-bench${in:+ by '$in'}: install llama.cpp-tools, see compare.md"
fi

# note ENGINE TYPE PHASE: tokens/s from standard input, into the results
note() {
    read -r rate || die "$1, $2, $3: no result, see $dir/log.txt"
    echo "$1 $2 $3 $rate" >>"$results"
    echo "  $1 $2 $3: $rate tokens/s" >&2
}

espalier() { # TYPE PHASE
    case $1 in 16) weights='' ;; *) weights="--weights $1" ;; esac
    # the prefix is one picture of 256 tokens and the rest; its features are made up, so that no encoder runs
    $in "$bin/espalier" bench --shape paligemma-3b-224 --layers "1/$layers" --phases "$2" --batch 1 \
        --prompt $((prefix - 256)) --repeats 1 --warm-up 1 --steps "$steps" $weights ${device:+--device "$device"} --json \
        2>>"$dir/log.txt" | python3 -c '
import json, sys
for p in json.load(sys.stdin)["devices"][0]["phases"]:
    print("%.4f" % p["rate"])' | note espalier "$1" "$2"
}

llama() { # ENGINE TYPE PHASE
    # CPU drivers are no devices to llama.cpp unless they are named; with none it is its CPU backend that computes
    case $1 in
    vulkan) set -- "$1" "$2" "$3" GGML_VK_VISIBLE_DEVICES="${device:-0}" 99 ;;
    *) set -- "$1" "$2" "$3" GGML_VK_VISIBLE_DEVICES= 0 ;;
    esac
    case $1,$3 in
    *,decode) what="-p 0 -n $steps" ;;
    vulkan,*) what="-p $prefix -n 0 --no-warmup" ;; # minutes on a CPU driver, of which compiling is seconds
    *) what="-p $prefix -n 0" ;;
    esac
    if [ "$1" = cpu ]; then what="$what -dev none"; fi
    $in env "$4" llama-bench -m "$dir/$2.gguf" $what -r 1 -ngl "$5" -t "$threads" -o json 2>>"$dir/log.txt" |
        python3 -c '
import json, sys
print("%.4f" % json.load(sys.stdin)[0]["avg_ts"])' | note "$1" "$2" "$3"
}

: >"$dir/log.txt"
for type in $(echo "$types" | tr , ' '); do
    case $type in
    16) gguf=f16 ;;
    q8) gguf=q8_0 ;;
    q4) gguf=q4_0 ;;
    *) usage ;;
    esac
    if has "$engines" vulkan || has "$engines" cpu; then
        echo "making $dir/$type.gguf ($gguf, $layers layers)" >&2
        python3 "$here/make_gguf.py" --type "$gguf" --layers "$layers" "$dir/$type.gguf"
    fi
    for phase in $(echo "$phases" | tr , ' '); do
        for round in $(seq "$rounds"); do
            echo "$type, $phase, round $round of $rounds" >&2
            for engine in $(echo "$engines" | tr , ' '); do
                if [ "$engine" = espalier ]; then
                    espalier "$type" "$phase"
                else
                    llama "$engine" "$type" "$phase"
                fi
            done
        done
    done
    [ -n "$keep" ] || rm -f "$dir/$type.gguf"
done

# Medians over the rounds, and Espalier's as multiples of the others'.
python3 - "$results" "$layers" "$prefix" "$steps" "$rounds" <<'PY'
import statistics
import sys

rates = {}
for line in open(sys.argv[1]):
    engine, kind, phase, rate = line.split()
    rates.setdefault((kind, phase), {}).setdefault(engine, []).append(float(rate))
print("%s decoder layers, %s tokens of prefix, %s decoding steps, medians of %s rounds by turns\n" % tuple(sys.argv[2:6]))
print("| weights | phase | espalier tokens/s | llama.cpp Vulkan | llama.cpp CPU | of its Vulkan | of its CPU |")
print("| --- | --- | --- | --- | --- | --- | --- |")
for (kind, phase), by in rates.items():
    mid = {e: statistics.median(v) for e, v in by.items()}
    mine = mid.get("espalier")
    cells = ["%.3g" % mid[e] if e in mid else "-" for e in ("espalier", "vulkan", "cpu")]
    cells += ["%.2fx" % (mine / mid[e]) if mine and mid.get(e) else "-" for e in ("vulkan", "cpu")]
    print("| %s | %s | %s |" % (kind, phase, " | ".join(cells)))
PY
