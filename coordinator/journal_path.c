#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "coordinator/journal.h"

/* Makes a folder, and those above it, all of them ours alone. */
static esp_status make_folders(char *path, struct esp_err *err)
{
    for (char *p = path + 1;; p++) {
        const char c = *p;

        if (c && c != '/')
            continue;
        *p = '\0';
        if (mkdir(path, 0700) != 0 && errno != EEXIST) {
            esp_fail(err, ESP_E_IO, "%s: %s", path, strerror(errno));
            *p = c;
            return ESP_E_IO;
        }
        *p = c;
        if (!c)
            return ESP_OK;
    }
}

esp_status esp_journal_default_path(char *out, size_t n_out, const char *endpoint, struct esp_err *err)
{
    const char *state = getenv("STATE_DIRECTORY"), *xdg = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    const char *port = strrchr(endpoint, ':');
    int w;

    if (strncmp(endpoint, "tcp://", 6) != 0 || !port || port < endpoint + 6)
        return esp_fail(err, ESP_E_ARG, "%s has no port to name a journal after", endpoint);
    if (state && state[0] == '/')
        w = snprintf(out, n_out, "%.*s", (int)strcspn(state, ":"),
                     state); /* the first, if there are several */
    else if (xdg && xdg[0] == '/')
        w = snprintf(out, n_out, "%s/espalier", xdg);
    else if (home && home[0] == '/')
        w = snprintf(out, n_out, "%s/.local/state/espalier", home);
    else
        return esp_fail(err, ESP_E_IO, "neither STATE_DIRECTORY nor XDG_STATE_HOME nor HOME names a folder");
    if (w < 0 || (size_t)w + sizeof "/coordinator-65535.journal" > n_out)
        return esp_fail(err, ESP_E_LIMIT, "the journal's path has more than %zu bytes", n_out);
    if (make_folders(out, err))
        return err ? err->code : ESP_E_IO;
    snprintf(out + w, n_out - (size_t)w, "/coordinator-%.5s.journal", port + 1);
    return ESP_OK;
}
