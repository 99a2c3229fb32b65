#!/bin/sh
# Who may include whom, and who alone sees a foreign library: the arrows of the source tree.
#
#   arrows.sh DIR    prints each line of DIR's sources that goes against an arrow; exit status 1 if there is one
set -u
export LC_ALL=C
cd "${1:?usage: arrows.sh DIR}" || exit 2
n_bad=0

# refuse WHAT PATTERN EXCEPT FOLDER...: no line of those sources may match PATTERN, unless "FILE:N:LINE" matches EXCEPT.
refuse() {
    what=$1 pattern=$2 except=$3
    shift 3
    found=$(find "$@" -name '*.[ch]' -o -name '*.cc' -o -name '*.glsl' -o -name '*.comp' 2>/dev/null |
        xargs grep -nE -e "$pattern" /dev/null | grep -vE -e "$except")
    if [ -n "$found" ]; then
        printf '%s:\n%s\n' "$what" "$found"
        n_bad=1
    fi
}

# includes FOLDER ALLOWED: of our own headers, FOLDER includes only those.
includes() {
    refuse "$1/ includes of ours only $2" '#include "(cli|coordinator|model|objects|picture|proto|shaders|tests|worker)/' \
        "#include \"($2)" "$1"
}
includes proto 'proto/'
includes picture 'picture/|proto/status\.h'
includes model 'model/|proto/status\.h'
includes objects 'objects/|picture/|model/|proto/status\.h'
includes shaders 'shaders/'
includes worker 'worker/|shaders/|model/|proto/'
includes coordinator 'coordinator/|picture/|model/|proto/'
includes cli 'cli/|coordinator/|objects/|picture/|model/|proto/'

# alone WHO PATTERN FILES: of our sources, only those match.
alone() {
    refuse "$1" "$2" "$3" cli coordinator model objects picture proto shaders worker
}
alone 'worker/ alone sees Vulkan' '#include.*vulkan' '^worker/'
alone 'proto/link.c, proto/auth.c and their again.h alone see ZeroMQ' '#include.*zmq\.h' '^proto/((link|auth)\.c|again\.h):'
alone 'proto/wire*.c alone see protobuf-c' '(espalier|ESPALIER)__|Espalier__|pb-c\.h' '^proto/wire[a-z_]*\.[ch]:'
alone 'cli/line.c alone sees readline' '#include.*readline/' '^cli/line\.c:'
alone 'cli/show.c alone sees libchafa and GLib' '#include <(chafa|glib)\.h' '^cli/show\.c:'
alone 'picture/ alone sees libpng and libjpeg' '#include.*(png|jpeglib)\.h' '^picture/'
alone 'objects/npz.c alone sees zlib' '#include.*zlib\.h' '^objects/npz\.c:'
alone 'coordinator/spm_shim.cc alone sees SentencePiece' '#include.*sentencepiece' '^coordinator/spm_shim\.cc:'
alone 'coordinator/journal_store*.c alone see SQLite' '#include.*sqlite' '^coordinator/journal_store[a-z_]*\.[ch]:'
exit $n_bad
