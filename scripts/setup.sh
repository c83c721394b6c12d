#!/usr/bin/env bash
# Make .venv ready: `scripts/setup.sh` for use, `scripts/setup.sh test` with the test dependencies too, and
# `scripts/setup.sh bench` with the packages that `memtok bench` compares with.
#
# Can be repeated, and interrupted at any point: .venv/memtok-setup is written last and says what was installed, so
# without it, or after a change of pyproject.toml, the install runs again and only adds what is missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

extra="${1:-}"
stamp=.venv/memtok-setup
wanted="$(cksum < pyproject.toml) for $PWD"

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

# Does it run (a name on the PATH may be a stand-in for a Python that is not there), and is it new enough?
new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' > /dev/null 2>&1; }
has_venv() { "$1" -c 'import ensurepip, venv' > /dev/null 2>&1; }

pick_python() {
    local candidate found=""
    for candidate in ${PYTHON:+"$PYTHON"} $([ -n "${PYTHON:-}" ] || echo python3.13 python3.12 python3.11 python3); do
        new_enough "$candidate" || continue
        found="$candidate"
        if has_venv "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    if [ -n "$found" ]; then
        fail "expected a Python with venv, found $found without it; install it (Debian, Ubuntu: apt install python3-venv)"
    elif [ -n "${PYTHON:-}" ]; then
        fail "expected Python 3.11 or newer, found PYTHON=$PYTHON, which is older or does not run; name another one"
    fi
    fail "expected Python 3.11 or newer, found none on the PATH; install one, or name it: make setup PYTHON=/path/to/python3"
}

venv_works() { new_enough .venv/bin/python && .venv/bin/python -m pip --version > /dev/null 2>&1; }

# Installed for this folder (not one that was moved), with this pyproject.toml, and with nothing missing since.
installed() {
    [ -f "$stamp" ] && grep -qxF "$wanted" "$stamp" || return 1
    [ -z "$extra" ] || grep -qxF "extra $extra" "$stamp" || return 1
    head -n 2 .venv/bin/memtok 2> /dev/null | grep -qF "$PWD/.venv/bin/python" || return 1
    .venv/bin/python -m pip check > /dev/null 2>&1
}

if ! venv_works; then
    python="$(pick_python)"
    if [ -e .venv ]; then
        say "there is a .venv that does not work; it is made anew"
    fi
    say "making .venv with $("$python" --version)"
    "$python" -m venv --clear .venv
elif installed; then
    say ".venv is ready"
    exit 0
fi

rm -f "$stamp"
# An interrupted install can leave a package that pip takes for whole; without its list of files it is not.
for info in .venv/lib/python3*/site-packages/*.dist-info; do
    if [ -d "$info" ] && [ ! -f "$info/RECORD" ]; then
        rm -rf "$info"
    fi
done
say "installing memtok${extra:+, with what is needed for: $extra,} into .venv"
if compgen -G '.venv/lib/python3*/site-packages/torch-*.dist-info' > /dev/null; then
    verbosity=--quiet # nothing large is missing
else
    verbosity=--progress-bar=on # and every package by name
    say "this takes some minutes (3 on a fast line): PyTorch's default build brings its GPU libraries, about 5 GB on"
    say "the disk, and works without a GPU too"
fi
SECONDS=0
.venv/bin/python -m pip install "$verbosity" --disable-pip-version-check --editable ".${extra:+[$extra]}" ||
    fail "the install did not finish (pip says why above); run the same command again, it goes on from here"
say "looking whether it can be imported (the first time takes a while)"
.venv/bin/python -c 'import memtok, timm, torch, torchvision' ||
    fail "expected memtok, timm, torch and torchvision to be importable, found the error above; remove .venv and run this again"
{
    echo "$wanted"
    [ -z "$extra" ] || echo "extra $extra"
} > "$stamp.part"
mv "$stamp.part" "$stamp"
say ".venv is ready after $SECONDS seconds: .venv/bin/python, .venv/bin/memtok"
