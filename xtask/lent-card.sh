#!/usr/bin/env bash
# Runs `cargo xtask gpu` on a GPU machine without a compiler: `pack` builds and packs the programs and their data
# here, `run` runs them there.
#
#   xtask/lent-card.sh pack cuda FILE.tar.gz        here: build for a backend, strip, pack
#   tar xzf FILE.tar.gz && ./lent-card.sh run cuda  there: write report.md next to the script
#   ./lent-card.sh run cuda --only cases            there: run one part, see `cargo xtask gpu --help`
set -euo pipefail
case "${1:-}" in
pack)
    backend="$2" archive="$(realpath "$3")"
    cd "$(dirname "$0")/.."
    cargo build --release -p idefics-cli -p xtask --features "idefics-cli/$backend,xtask/$backend"
    folder="$(mktemp -d)"
    trap 'rm -rf "$folder"' EXIT
    for program in idefics xtask; do
        strip -o "$folder/$program" "${CARGO_TARGET_DIR:-target}/release/$program"
    done
    # `run` finds the cases next to the programs, not in the source tree.
    cp -r xtask/cases xtask/checkpoints xtask/images "$folder/"
    cp xtask/lent-card.sh "$folder/"
    tar -C "$folder" -c . | gzip -9 > "$archive"
    ls -l "$archive"
    ;;
run)
    cd "$(dirname "$0")"
    IDEFICS_CASES="$PWD/cases" ./xtask gpu --device "${2:?a backend, such as cuda}" --programs . --output report.md "${@:3}"
    ;;
*)
    sed -n '2,7p' "$0" >&2
    exit 2
    ;;
esac
