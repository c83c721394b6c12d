#!/usr/bin/env bash
# Install Debian's Chromium for the tests of the server's page, if there is no browser yet and this user may install it.
# Without one those tests are skipped, and say so: this never fails.
set -uo pipefail

say() { printf 'setup-browser: %s\n' "$*"; }

for name in chromium chromium-browser google-chrome; do
    if command -v "$name" > /dev/null; then
        say "$name is there"
        exit 0
    fi
done
if ! command -v apt-get > /dev/null; then
    say "no browser, and no apt-get to install one: the tests of the page will be skipped"
    exit 0
fi
root=()
if [ "$(id -u)" -ne 0 ]; then
    if ! sudo -n true 2> /dev/null; then
        say "no browser, and no right to install one (sudo apt-get install chromium): the tests of the page will be skipped"
        exit 0
    fi
    root=(sudo -n)
fi
say "installing Debian's chromium"
export DEBIAN_FRONTEND=noninteractive
if { "${root[@]}" apt-get update -qq && "${root[@]}" apt-get install -y -qq --no-install-recommends chromium; } > /dev/null 2>&1 &&
    command -v chromium > /dev/null; then
    say "chromium is there"
else
    say "chromium could not be installed: the tests of the page will be skipped"
fi
