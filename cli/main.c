#include <stdio.h>
#include <string.h>

#include "cli/args.h"
#include "cli/command.h"

static const struct {
    const char *name, *about;
    int (*run)(int argc, char **argv);
} commands[] = {
    {"run", "answer a prompt about pictures", esp_command_run},
    {"chat", "questions about pictures, one after the other", esp_command_chat},
    {"score", "log-likelihood of a given answer", esp_command_score},
    {"eval", "how right a model's answers to a set of examples are", esp_command_eval},
    {"compare", "how far other weights are from a model's own", esp_command_compare},
    {"quantize", "a checkpoint in 8.5 or 4.5 bits a weight", esp_command_quantize},
    {"up", "a coordinator and workers on this machine, in the foreground", esp_command_up},
    {"cluster", "what a running cluster is doing", esp_command_cluster},
    {"verify", "whether every worker's device computes rightly", esp_command_verify},
    {"tokenize", "text to ids and back", esp_command_tokenize},
    {"devices", "Vulkan devices of this machine", esp_command_devices},
    {"bench", "how fast a device or a cluster is, and what it could be", esp_command_bench},
    {"keygen", "keys for a cluster that others can reach", esp_command_keygen},
};

#define N_COMMANDS (sizeof commands / sizeof commands[0])

static void overview(FILE *f)
{
    fprintf(f, "Espalier " ESP_VERSION ": PaliGemma on a cluster of Vulkan devices.\n\n"
               "Usage: espalier COMMAND [options]\n\n");
    for (size_t i = 0; i < N_COMMANDS; i++)
        fprintf(f, "  %-10s %s\n", commands[i].name, commands[i].about);
    fprintf(f, "  %-10s %s\n  %-10s %s\n", "help", "all about a command: espalier help run", "version",
            "the version of this program");
    fprintf(f, "\nA first answer:\n  espalier run --model DIR --image cat.jpg \"caption en\"\n");
}

int main(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : NULL;
    char help_flag[] = "--help";

    if (!name) {
        overview(stderr);
        return ESP_EXIT_USAGE;
    }
    if (strcmp(name, "--version") == 0 || strcmp(name, "version") == 0) {
        printf("espalier " ESP_VERSION "\n");
        return fflush(stdout) == 0 ? 0 : ESP_EXIT_FAILED;
    }
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || (strcmp(name, "help") == 0 && argc == 2)) {
        overview(stdout);
        return fflush(stdout) == 0 ? 0 : ESP_EXIT_FAILED;
    }
    if (strcmp(name, "help") == 0)
        name = argv[2];
    for (size_t i = 0; i < N_COMMANDS; i++) {
        if (strcmp(name, commands[i].name) != 0)
            continue;
        if (name == argv[1])
            return commands[i].run(argc - 1, argv + 1);
        return commands[i].run(2, (char *[]){argv[2], help_flag, NULL});
    }
    fprintf(stderr, "espalier: there is no command '%s'\nTry 'espalier --help'.\n", name);
    return ESP_EXIT_USAGE;
}
