#!/bin/sh
# arrows.sh itself: it takes this tree, and finds each kind of line that it is there to find.
set -u
here=$(cd "$(dirname "$0")" && pwd)
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
failed=0

if ! sh "$here/arrows.sh" "$here/../.."; then
    failed=1
fi
while IFS='|' read -r verdict file line; do
    rm -rf "$dir/tree"
    mkdir -p "$dir/tree/$(dirname "$file")"
    printf '%s\n' "$line" >"$dir/tree/$file"
    if sh "$here/arrows.sh" "$dir/tree" >"$dir/out" 2>&1; then got=fine; else got=bad; fi
    if [ $got != "$verdict" ]; then
        echo "FAILED: $file with $line should be $verdict"
        cat "$dir/out"
        failed=1
    fi
done <<'CASES'
bad|proto/a.c|#include "model/config.h"
bad|model/a.c|#include "proto/wire.h"
bad|model/a.h|#include "worker/kv.h"
fine|model/a.c|#include "proto/status.h"
bad|worker/a.c|#include "coordinator/roster.h"
bad|worker/a.c|#include "cli/args.h"
fine|worker/vk_a.c|#include <vulkan/vulkan.h>
bad|coordinator/a.c|#include "worker/kv.h"
bad|coordinator/a.c|#include <vulkan/vulkan.h>
bad|coordinator/a.c|#include "cli/args.h"
fine|cli/a.c|#include "coordinator/token.h"
bad|cli/a.c|#include "worker/kv.h"
bad|cli/a.c|#include "shaders/push.h"
bad|cli/a.c|#include "tests/support/ref.h"
bad|shaders/push.h|#include "model/config.h"
bad|objects/a.c|#include "coordinator/resize.h"
bad|objects/a.c|#include "proto/wire.h"
fine|objects/a.c|#include "picture/image.h"
bad|picture/a.c|#include "objects/rle.h"
bad|picture/a.c|#include "model/config.h"
fine|coordinator/a.c|#include "picture/image.h"
bad|coordinator/a.c|#include "objects/rle.h"
bad|worker/a.c|#include "picture/image.h"
fine|cli/a.c|#include "objects/rle.h"
bad|cli/a.c|#include <png.h>
bad|objects/a.c|#include <jpeglib.h>
fine|picture/a.c|#include <png.h>
bad|objects/a.c|#include <glib.h>
fine|objects/npz.c|#include <zlib.h>
bad|objects/codec.c|#include <zlib.h>
fine|shaders/a.comp|#include "push.h"
bad|coordinator/a.c|#include <zmq.h>
bad|proto/wire.c|#include <zmq.h>
bad|cli/chat.c|#include <readline/readline.h>
fine|cli/line.c|#include <readline/history.h>
bad|cli/chat.c|#include <chafa.h>
fine|cli/show.c|#include <chafa.h>
fine|proto/link.c|#include <zmq.h>
fine|proto/auth.c|#include <zmq.h>
bad|proto/link.c|Espalier__Envelope *e;
fine|proto/wire_check.c|Espalier__Envelope *e;
bad|worker/serve.c|#include "espalier.pb-c.h"
bad|coordinator/token.c|#include <sentencepiece_processor.h>
bad|coordinator/journal.c|#include <sqlite3.h>
fine|coordinator/journal_store.c|#include <sqlite3.h>
fine|coordinator/journal_store_state.h|#include <sqlite3.h>
CASES
exit $failed
