#!/bin/sh
# Puts Penn Treebank and WikiText-2 into data/penn and data/wikitext-2, where the paper's command lines look for them.
set -u
cd "$(dirname "$0")" || exit 1

if command -v highrank >/dev/null 2>&1; then
    get() { highrank data get "$1" --out "$2"; }
else
    get() { "${PYTHON:-python}" -m highrank data get "$1" --out "$2"; }
fi

status=0
for name in penn wikitext-2; do
    get "$name" "data/$name" || status=1
done
if [ "$status" -ne 0 ]; then
    echo "get_data.sh: without a network, put train.txt, valid.txt and test.txt of each corpus into $PWD/data/penn and" >&2
    echo "$PWD/data/wikitext-2 by hand, or link folders that have them: ln -s /path/to/penn data/penn" >&2
fi
exit "$status"
