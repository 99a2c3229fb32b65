#!/bin/sh
# Makes models/tiny from nothing: corpus, tokenizer, mask codec, vision tower, decoder (packed, then exact), export.
#
#   tools/train/train.sh WORK OUT [DIR]    WORK: states, logs and all that is made on the way, outside the repository
#                                          OUT: the checkpoint's folder; DIR: where the programs are (build/bin)
#
# Stopped and started again it goes on where it was: finished parts are kept, a stage's state is saved every two minutes.
# README.md has what it needs and how long it takes. PYTHON names the interpreter (python3), OMP_NUM_THREADS the threads
# (1). A stage's options can be overridden: VISION, PACKED, EXACT.
set -eu
work=${1:?usage: train.sh WORK OUT [DIR]} out=${2:?usage: train.sh WORK OUT [DIR]}
here=$(cd "$(dirname "$0")" && pwd)
scenes=$(cd "${3:-$here/../../build/bin}" && pwd)/espalier-scenes
python=${PYTHON:-python3}
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
mkdir -p "$work"

# train.sh calls a stage done when its log says so.
stage() { # NAME FIRST OPTION...
    name=$1 first=$2
    shift 2
    if ! grep -qs '^# done' "$work/$name.log"; then
        "$python" "$here/train.py" "$name" --work "$work" --scenes "$scenes" --seed 1 --first "$first" \
            --threads "$OMP_NUM_THREADS" "$@"
    fi
}

if [ ! -e "$work/tokenizer.model" ]; then
    "$scenes" --out "$work/corpus" --count 3000 --seed 1
    "$python" "$here/tokenizer.py" "$work/corpus/scenes.jsonl" "$work/tokenizer.part"
    mv "$work/tokenizer.part" "$work/tokenizer.model"
fi
if [ ! -e "$work/vae-oid.npz" ]; then
    "$python" "$here/train_codec.py" --out "$work/codec.npz"
    mv "$work/codec.npz" "$work/vae-oid.npz"
fi
# Each stage draws scenes of its own: the numbers after the names are the first ones.
# shellcheck disable=SC2086 # the options are meant to be split
{
    stage vision 0 ${VISION:---batch 64 --lr 2e-3 --steps 2400 --decay 1}
    stage packed 1000000 --init "$work/vision.pt" --tokenizer "$work/tokenizer.model" --codec "$work/vae-oid.npz" \
        --places 6 --weights 1,2,2,1,2 \
        ${PACKED:---batch 40 --lr 1e-3 --warmup 60 --dense 0.12 --tower 0.8 --steps 2400 --decay 1000}
    stage exact 2000000 --init "$work/packed.pt" --tokenizer "$work/tokenizer.model" --codec "$work/vae-oid.npz" \
        --places 6 --weights 1,2,2,1,2 --sigma 10 --round 60 \
        ${EXACT:---batch 16 --pairs 8 --lr 3e-4 --warmup 20 --dense 0.1 --tower 0.7 --steps 420 --decay 405}
}
"$python" "$here/export.py" --state "$work/exact.pt" --tokenizer "$work/tokenizer.model" \
    --codec "$work/vae-oid.npz" --out "$out"
