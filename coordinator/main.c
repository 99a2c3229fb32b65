/* espalier-coordinator: options, signals, and the server's loop. */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "coordinator/server.h"
#include "proto/log.h"

enum { EXIT_DONE = 0, EXIT_FAILED = 1, EXIT_USAGE = 2 };

static const char usage[] =
    "usage: espalier-coordinator --model DIR --bind ENDPOINT [options]\n"
    "\n"
    "Serves one model to clients, on workers that join it. Workers and clients use the same endpoint.\n"
    "\n"
    "  --model DIR        checkpoint directory, as huggingface-cli leaves it\n"
    "  --bind ENDPOINT    tcp://HOST:PORT or ipc://PATH; a port of * is chosen by the system\n"
    "  --workers N        place the model once N workers have joined (1); later ones become spares\n"
    "  --context TOKENS   longest sequence, pictures included (4 pictures, 2 of 896 pixels, and 1024 "
    "tokens)\n"
    "  --kv-tokens N      tokens of KV cache over all sequences (4 contexts)\n"
    "  --max-images N     pictures whose features are kept (as many as fill the KV cache; 4 to 64)\n"
    "  --split V/T,...    encoder and decoder layers of each worker, by hand, in the order of names\n"
    "  --weights TYPE     what workers hold weights as: stored (as the files have them, the default), bf16, "
    "f16, f32,\n"
    "                     q8 (8.5 bits a weight) or q4 (4.5 in most of the decoder, else q8): smaller and "
    "faster,\n"
    "                     and not quite the same answers\n"
    "  --final-softcap    apply the final soft-cap of a PaliGemma 2 model to its logits\n"
    "  --keys DIR         the coordinator's keys, as 'espalier keygen' makes them (OUT/coordinator): every "
    "link is\n"
    "                     encrypted, and only workers and clients in the allow lists get in\n"
    "  --journal FILE     where sessions are kept over a restart (for tcp, unless its port is *:\n"
    "                     coordinator-PORT.journal in $STATE_DIRECTORY, $XDG_STATE_HOME/espalier or\n"
    "                     ~/.local/state/espalier; for ipc: none)\n"
    "  --no-journal       keep none: a restart loses the sessions, and clients begin anew\n"
    "  --resume-within S  seconds after a restart within which their clients must come back (120)\n"
    "  --heartbeat-ms N   how often coordinator and workers tell each other that they are there (300)\n"
    "  --timeout-ms N     how long one of them may say nothing before it counts as lost (1600); more on slow "
    "networks\n"
    "  --insecure         allow an endpoint that other machines reach, without keys\n"
    "  --die-with-parent  end when the parent process does\n"
    "  --log-level LEVEL  error, warn, info (default), debug or trace\n"
    "  --help, --version\n";

struct options {
    struct esp_server_options server;
    bool die_with_parent;
    enum esp_log_level level;
};

static int usage_error(const char *what, const char *which)
{
    fprintf(stderr, "espalier-coordinator: %s: %s\ntry espalier-coordinator --help\n", which, what);
    return EXIT_USAGE;
}

/* A whole decimal number of [least, UINT32_MAX]. */
static bool parse_u32(uint32_t *out, const char *text, uint32_t least)
{
    char *end;
    unsigned long long v;

    if (text[0] < '0' || text[0] > '9')
        return false;
    errno = 0;
    v = strtoull(text, &end, 10);
    if (errno || *end || v > UINT32_MAX || v < least)
        return false;
    *out = (uint32_t)v;
    return true;
}

enum {
    OPT_MODEL = 1,
    OPT_BIND,
    OPT_WORKERS,
    OPT_CONTEXT,
    OPT_KV,
    OPT_IMAGES,
    OPT_SPLIT,
    OPT_SOFTCAP,
    OPT_INSECURE,
    OPT_KEYS,
    OPT_JOURNAL,
    OPT_NO_JOURNAL,
    OPT_RESUME,
    OPT_DIE,
    OPT_LEVEL,
    OPT_HELP,
    OPT_VERSION,
    OPT_HEARTBEAT,
    OPT_CHUNK,
    OPT_STOP_AFTER,
    OPT_WEIGHTS,
    OPT_TIMEOUT
};

static const struct option longs[] = {{"model", required_argument, NULL, OPT_MODEL},
                                      {"bind", required_argument, NULL, OPT_BIND},
                                      {"workers", required_argument, NULL, OPT_WORKERS},
                                      {"context", required_argument, NULL, OPT_CONTEXT},
                                      {"kv-tokens", required_argument, NULL, OPT_KV},
                                      {"max-images", required_argument, NULL, OPT_IMAGES},
                                      {"split", required_argument, NULL, OPT_SPLIT},
                                      {"final-softcap", no_argument, NULL, OPT_SOFTCAP},
                                      {"weights", required_argument, NULL, OPT_WEIGHTS},
                                      {"insecure", no_argument, NULL, OPT_INSECURE},
                                      {"keys", required_argument, NULL, OPT_KEYS},
                                      {"journal", required_argument, NULL, OPT_JOURNAL},
                                      {"no-journal", no_argument, NULL, OPT_NO_JOURNAL},
                                      {"resume-within", required_argument, NULL, OPT_RESUME},
                                      {"die-with-parent", no_argument, NULL, OPT_DIE},
                                      {"log-level", required_argument, NULL, OPT_LEVEL},
                                      {"help", no_argument, NULL, OPT_HELP},
                                      {"version", no_argument, NULL, OPT_VERSION},
                                      {"heartbeat-ms", required_argument, NULL, OPT_HEARTBEAT},
                                      {"timeout-ms", required_argument, NULL, OPT_TIMEOUT},
                                      /* for tests: not in the help */
                                      {"chunk-kib", required_argument, NULL, OPT_CHUNK},
                                      {"chunks-at-most", required_argument, NULL, OPT_STOP_AFTER},
                                      {NULL, 0, NULL, 0}};

/* Exit status, or -1 to go on. */
static int parse(struct options *o, int argc, char **argv)
{
    uint32_t number = 0;
    int c, index = 0;

    while ((c = getopt_long(argc, argv, ":", longs, &index)) != -1) {
        bool good = true;

        switch (c) {
        case OPT_MODEL:
            o->server.model = optarg;
            break;
        case OPT_BIND:
            o->server.bind = optarg;
            break;
        case OPT_WORKERS:
            good = parse_u32(&o->server.n_workers, optarg, 1);
            break;
        case OPT_CONTEXT:
            good = parse_u32(&o->server.sizing.context, optarg, 1);
            break;
        case OPT_KV:
            good = parse_u32(&o->server.sizing.kv_tokens, optarg, 1);
            break;
        case OPT_IMAGES:
            good = parse_u32(&o->server.sizing.max_images, optarg, 1);
            break;
        case OPT_HEARTBEAT:
            good = parse_u32(&o->server.heartbeat_ms, optarg, 1);
            break;
        case OPT_TIMEOUT:
            good = parse_u32(&o->server.timeout_ms, optarg, 1);
            break;
        case OPT_CHUNK:
            good = parse_u32(&number, optarg, 1) && number <= UINT32_MAX >> 10;
            o->server.supply.chunk_bytes = number << 10;
            break;
        case OPT_STOP_AFTER:
            good = parse_u32(&number, optarg, 1);
            o->server.supply.stop_after = number;
            break;
        case OPT_SPLIT:
            o->server.split = optarg;
            break;
        case OPT_WEIGHTS:
            good = esp_wtype_parse(&o->server.weights, optarg);
            break;
        case OPT_SOFTCAP:
            o->server.final_softcap = true;
            break;
        case OPT_KEYS:
            o->server.keys = optarg;
            break;
        case OPT_JOURNAL:
            o->server.journal = optarg;
            break;
        case OPT_NO_JOURNAL:
            o->server.no_journal = true;
            break;
        case OPT_RESUME:
            good = parse_u32(&o->server.resume_within_s, optarg, 1);
            break;
        case OPT_INSECURE:
            o->server.insecure = true;
            break;
        case OPT_DIE:
            o->die_with_parent = true;
            break;
        case OPT_LEVEL:
            good = esp_log_level_parse(&o->level, optarg);
            break;
        case OPT_HELP:
            fputs(usage, stderr);
            return EXIT_DONE;
        case OPT_VERSION:
            fputs("espalier-coordinator " ESP_VERSION "\n", stderr);
            return EXIT_DONE;
        case ':':
            return usage_error("needs a value", argv[optind - 1]);
        default:
            return usage_error("no such option", argv[optind - 1]);
        }
        if (!good)
            return usage_error("not a value that this option takes", argv[optind - 1]);
    }
    if (optind < argc)
        return usage_error("unexpected argument", argv[optind]);
    if (!o->server.model || !o->server.bind)
        return usage_error("is missing", o->server.model ? "--bind" : "--model");
    if (o->server.journal && o->server.no_journal)
        return usage_error("goes against --no-journal", "--journal");
    return -1;
}

/* Readable once SIGINT or SIGTERM came. Blocked before any thread starts, so that none of them takes it. */
static int stop_descriptor(void)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* a limit on file sizes is to the journal what a full disk is */
    if (sigprocmask(SIG_BLOCK, &set, NULL) != 0)
        return -1;
    return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

int main(int argc, char **argv)
{
    struct options o = {.server = {.n_workers = 1}, .level = ESP_LOG_INFO};
    struct esp_server *server = NULL;
    struct esp_log log;
    struct esp_err err = {0};
    const pid_t parent = getppid();
    int fd, rc = parse(&o, argc, argv);
    esp_status st;

    if (rc >= 0)
        return rc;
    if (o.die_with_parent) {
        /* The parent may have died before this call: then there is a new one already. */
        if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0 || getppid() != parent) {
            fputs("espalier-coordinator: the parent process is gone\n", stderr);
            return EXIT_FAILED;
        }
    }
    esp_log_init(&log, "coordinator");
    log.level = o.level;
    fd = stop_descriptor();
    if (fd < 0) {
        fprintf(stderr, "espalier-coordinator: signalfd: %s\n", strerror(errno));
        return EXIT_FAILED;
    }
    st = esp_server_create(&server, &o.server, &log, &err);
    if (!st)
        st = esp_server_run(server, fd, &err);
    esp_server_destroy(&server);
    close(fd);
    if (st) {
        fprintf(stderr, "espalier-coordinator: %s\n", err.text);
        return st == ESP_E_ARG ? EXIT_USAGE : EXIT_FAILED;
    }
    return EXIT_DONE;
}
