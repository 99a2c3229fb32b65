/*
 * espalier-worker --simulate PROFILE.json: worker/main.c with a timed stand-in for its engine, in test builds only.
 *
 * Takes its own option out of the arguments and leaves the rest to the worker's main, which is built here under
 * another name.
 */
#include <stdio.h>
#include <string.h>

#include "tests/sim/sim_device.h"

int espalier_worker_main(int argc, char **argv);

/* The value of --NAME VALUE or --NAME=VALUE at argv[i], and how many arguments that takes; NULL: it is another. */
static const char *value_of(const char *name, char **argv, int i, int *n)
{
    const size_t len = strlen(name);

    if (strncmp(argv[i], name, len) != 0 || (argv[i][len] && argv[i][len] != '='))
        return NULL;
    *n = argv[i][len] ? 1 : 2;
    return argv[i][len] ? argv[i] + len + 1 : argv[i + 1];
}

int main(int argc, char **argv)
{
    static struct sim_profile profile;
    static struct esp_config config;
    const char *simulate = NULL, *model = NULL;
    struct esp_err err;
    int n_arg = 1, n = 0;

    for (int i = 1; i < argc; i++) {
        const char *value = value_of("--simulate", argv, i, &n);

        if (value) {
            simulate = value;
            i += n - 1;
            continue;
        }
        value = value_of("--model", argv, i, &n);
        if (value)
            model = value;
        argv[n_arg++] = argv[i];
    }
    argv[n_arg] = NULL;
    if (simulate && model) { /* without a model the worker's main complains better */
        if (sim_profile_load(&profile, simulate, &err) || esp_config_load(&config, model, &err)) {
            fprintf(stderr, "espalier-worker: %s\n", err.text);
            return 1;
        }
        sim_vk_set(&profile, &config);
    }
    return espalier_worker_main(n_arg, argv);
}
