/**
 * Runs LLVMFuzzerTestOneInput over files: a fuzz target's corpus as an ordinary test, with any compiler.
 *
 *   replay_TARGET DIR_OR_FILE...
 *
 * Fails when an argument cannot be read or no input was found at all: an empty corpus tests nothing.
 */
#include <dirent.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "tests/fuzz/fuzz.h"

static bool replay_file(const char *path)
{
    bool ok = false;
    uint8_t *data = NULL;
    size_t n_bytes;
    struct stat sb;
    FILE *f = fopen(path, "rb");

    if (!f || fstat(fileno(f), &sb) != 0 || sb.st_size < 0)
        goto done;
    n_bytes = (size_t)sb.st_size;
    data = malloc(n_bytes ? n_bytes : 1); /* exact size, so that ASan sees the first byte too many */
    if (!data || fread(data, 1, n_bytes, f) != n_bytes)
        goto done;
    LLVMFuzzerTestOneInput(data, n_bytes);
    ok = true;
done:
    if (!ok)
        perror(path);
    free(data);
    if (f)
        fclose(f);
    return ok;
}

/* Adds the number of inputs run to *n_run; false once one could not be read. */
static bool replay(const char *path, size_t *n_run)
{
    bool ok = true;
    struct stat sb;
    struct dirent **entry = NULL;
    int n_entry;

    if (stat(path, &sb) != 0) {
        perror(path);
        return false;
    }
    if (!S_ISDIR(sb.st_mode)) {
        *n_run += 1;
        return replay_file(path);
    }
    n_entry = scandir(path, &entry, NULL, alphasort); /* sorted: a failure repeats at the same place */
    if (n_entry < 0) {
        perror(path);
        return false;
    }
    for (int i = 0; i < n_entry; i++) {
        char child[4096];
        int w = snprintf(child, sizeof child, "%s/%s", path, entry[i]->d_name);
        if (ok && entry[i]->d_name[0] != '.')
            ok = w > 0 && (size_t)w < sizeof child && replay(child, n_run);
        free(entry[i]);
    }
    free(entry);
    return ok;
}

int main(int argc, char **argv)
{
    size_t n_run = 0;

    for (int i = 1; i < argc; i++) {
        if (!replay(argv[i], &n_run))
            return 1;
    }
    printf("%zu inputs\n", n_run);
    return n_run > 0 ? 0 : 1;
}
