#!/usr/bin/env bash
# Trains the teacher where this folder was unpacked, and leaves its weights in parts in $OUT:
#
#     bash run.sh [options of training.pretrain]
#
# MINUTES  of one call, from its first second to its last       CALLS  how many calls share the training
# WORK     keeps the state from call to call (./work)           OUT    gets what is to be brought back (./out)
# DEVICE   cuda (the default) or cpu                            PYTHON the interpreter (python3)
#
# Where a call may last 10 minutes only, three with CALLS=3 MINUTES=9 and the same WORK train as one
# of 27 does.
set -euo pipefail

MINUTES=${MINUTES:-@MINUTES@} CALLS=${CALLS:-1} DEVICE=${DEVICE:-cuda} PYTHON=${PYTHON:-python3}
mkdir -p "${WORK:=work}" "${OUT:=out}"
WORK=$(cd "$WORK" && pwd) OUT=$(cd "$OUT" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")"

export PYTHONPATH="$PWD/installed${PYTHONPATH:+:$PYTHONPATH}"
if [[ -d wheels && ! -d installed ]]; then
    rm -rf installed.partial
    "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-index --find-links wheels \
        --no-deps --target installed.partial -r wheels/requirements.txt
    mv installed.partial installed
fi
"$PYTHON" -m training.pack --check "$DEVICE"

start=()
if [[ -e start.safetensors ]]; then start=(--start start.safetensors); fi
# The samples are made on the processor, one core each; the last core feeds the GPU.
cores=$(nproc)
workers=$((cores > 1 ? cores - 1 : 1))

# Python's start, the last step, writing and splitting take less than this.
reserve=45
seconds=$((MINUTES * 60 - SECONDS - reserve))
if ((seconds <= 0)); then
    echo "MINUTES=$MINUTES leaves no time to train: give at least 2" >&2
    exit 1
fi
minutes() { printf '%d.%02d' $(($1 / 60)) $(($1 % 60 * 100 / 60)); }

"$PYTHON" -m training.pretrain --data data --atlases atlases --out "$WORK" --device "$DEVICE" \
    --minutes "$(minutes $((CALLS * seconds)))" --call-minutes "$(minutes $seconds)" \
    --rois 8 --workers "$workers" "${start[@]}" "$@"
"$PYTHON" -m training.pack --split "$WORK" --out "$OUT"
