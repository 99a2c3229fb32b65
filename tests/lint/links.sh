#!/bin/sh
# Every relative link of the documents leads to a file or folder that is there.
#
#   links.sh DIR
set -u
cd "${1:?usage: links.sh DIR}" || exit 2
find . -name '*.md' ! -path './build*' ! -path './.git/*' | sort | {
    n_bad=0
    n_links=0
    while read -r document; do
        # [text](target), without an anchor; what names a scheme is not ours to look up
        for target in $(grep -oE '\]\([^) ]+\)' "$document" | sed -e 's/^](//' -e 's/)$//' -e 's/#.*//'); do
            case $target in
            *:*) continue ;;
            esac
            n_links=$((n_links + 1))
            if [ ! -e "$(dirname "$document")/$target" ]; then
                echo "$document: $target is not there"
                n_bad=$((n_bad + 1))
            fi
        done
    done
    echo "$n_links links, $n_bad dead"
    [ $n_bad -eq 0 ] && [ $n_links -gt 0 ]
}
