#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cli/args.h"
#include "cli/command.h"
#include "cli/embed.h"

static const struct esp_command_help help = {
    .name = "devices",
    .synopsis = "[--json | --tune [--device D]]",
    .about =
        "Lists this machine's Vulkan devices, what a worker would make of each, and why some are refused.\n"
        "With --tune it measures anew which variants and tiles of a GPU's kernels suit a device, prints what "
        "it found\n"
        "and keeps the choice. Workers do so by themselves when they first meet a device; those that run "
        "take a new\n"
        "choice at their next start. This asks espalier-worker, the one program that knows Vulkan.\n",
    .examples = "  espalier devices\n"
                "  espalier devices --json\n"
                "  espalier devices --tune\n",
};

int esp_command_devices(int argc, char **argv)
{
    bool json = false, tune = false;
    const char *device = NULL;
    struct esp_arg options[] = {
        {"json", 0, ESP_ARG_FLAG, NULL, "A JSON array on standard output.", &json, 0, 0, false, NULL},
        {"tune", 0, ESP_ARG_FLAG, NULL,
         "Measure the variants of a device's kernels anew, and keep the choice.", &tune, 0, 0, false, NULL},
        {"device", 'd', ESP_ARG_TEXT, "D",
         "With --tune: its number or part of its name; default: the best one.", &device, 0, 0, false, NULL}};
    const struct esp_arg_group groups[] = {{"Options", options, 3}, {NULL, NULL, 0}};
    struct esp_err err;
    char path[4096], **rest;
    int n_rest, r = esp_args_parse(&help, groups, argc, argv, &rest, &n_rest);

    if (r != ESP_ARGS_GO_ON)
        return r;
    if (n_rest > 0)
        return esp_args_bad(&help, "'%s': no such argument", rest[0]);
    if (json && tune)
        return esp_args_bad(&help, "--json does not go with --tune");
    if (device && !tune)
        return esp_args_bad(&help, "--device goes with --tune");
    if (esp_program_path(path, sizeof path, "espalier-worker", &err)) {
        fprintf(stderr, "espalier devices: %s\n", err.text);
        return ESP_EXIT_FAILED;
    }
    if (tune)
        execlp(path, path, "--tune", device ? "--device" : (char *)NULL, device, (char *)NULL);
    else
        execlp(path, path, "--list-devices", json ? "--json" : (char *)NULL, (char *)NULL);
    fprintf(stderr, "espalier devices: %s: %s\n", path, strerror(errno));
    return ESP_EXIT_FAILED;
}
