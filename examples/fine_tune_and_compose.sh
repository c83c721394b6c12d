#!/usr/bin/env bash
# Fine-tune two tasks on one backbone, put them into one file, verify that nothing changed, predict.
#
#     examples/fine_tune_and_compose.sh [FOLDER [STEPS]]
#
# Everything that it needs comes with memtok; fine_tune_and_compose.py does the same in Python. `memtok` and its
# `python` must be on the PATH (in a checkout: PATH="$PWD/.venv/bin:$PATH"). With your own data and backbone,
# leave out "${short[@]}": the defaults are meant for that, and choose what a task reads by themselves.
set -euo pipefail

out="${1:-runs/example}"
steps="${2:-200}"
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
short=(--regime memory --steps "$steps" --batch-size 32 --learning-rate 0.03 --augment none --overwrite)

# A folder of images, one folder per class. Take your own instead.
python "$here/make_folder.py" "$out/photos"

# Two tasks, trained separately. The two runs share only the backbone.
memtok train --backbone small --data digits --out "$out/digits.safetensors" "${short[@]}"
# 20 % of the folder are held out as a test set; digits have a test part.
memtok train --backbone small --data "folder:$out/photos" --split 80-20 --out "$out/parity.safetensors" "${short[@]}"

# Put both tasks into one file.
memtok concat "$out/digits.safetensors" "$out/parity.safetensors" --out "$out/both.safetensors"

# Verify: exit code 0 only if the backbone's output is bitwise that without tasks, each task's that of the task alone.
memtok verify "$out/both.safetensors" --backbone small --data digits

# One pass over the images evaluates every task.
memtok evaluate "$out/both.safetensors" --backbone small --data digits=digits "parity=folder:$out/photos"
python "$here/make_folder.py" "$out/unseen" test 5
memtok predict "$out/both.safetensors" --backbone small --images "$out/unseen" --base
