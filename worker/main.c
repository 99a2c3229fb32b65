/* espalier-worker: a device that holds some of a model's layers. Arguments, set-up and exit status; the rest
 * is serve.c. */
#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "model/checkpoint.h"
#include "model/file.h"
#include "proto/link.h"
#include "proto/log.h"
#include "worker/address.h"
#include "worker/packed.h"
#include "worker/bench.h"
#include "worker/serve.h"
#include "worker/tune.h"
#include "worker/vk_device.h"

#define STOP_TIMEOUT_MS 1500 /* who starts us waits two seconds before it kills */

static const char help[] =
    "Usage: espalier-worker [--model DIR] --connect ENDPOINT [options]\n"
    "       espalier-worker --list-devices [--json]\n"
    "       espalier-worker --tune [--device D]\n"
    "       espalier-worker --bench WHAT --model MODEL [--device D] [--memory MIB]\n"
    "\n"
    "Runs the layers of a model that a coordinator places here, on one Vulkan device. Keeps dialling while "
    "the\n"
    "coordinator is away. Logs to stderr; prints nothing to stdout but --list-devices, --tune and --help.\n"
    "\n"
    "  --model DIR          checkpoint directory; must be the coordinator's model. Without it the weights of "
    "this "
    "worker's\n"
    "                       layers are fetched from the coordinator and kept on disk for the next time\n"
    "  --cache DIR          where they are kept; default: espalier/weights in $XDG_CACHE_HOME or ~/.cache\n"
    "  --cache-limit MIB    of all that is kept there; what was not used for the longest time goes first\n"
    "  --packed DIR         where quantised weights are kept as the device reads them; default: "
    "espalier/packed "
    "likewise\n"
    "  --packed-limit MIB   of all that is kept there, as for --cache-limit; default 32768\n"
    "  --packed-all         keep weights that are not quantised there, too, once more on disk: a CPU driver "
    "then uses\n"
    "                       the files where the system has them in memory, and the next start takes a "
    "fraction\n"
    "  --no-packed          keep none: quantise at every start\n"
    "  --connect ENDPOINT   the coordinator: tcp://HOST:PORT or ipc://PATH\n"
    "  --name NAME          1 to 63 of [A-Za-z0-9._-], unique in the cluster; default HOST-PID\n"
    "  --bind ENDPOINT      where other workers reach this one; default: a private socket if --connect is "
    "ipc://, else\n"
    "                       any free port on the address that faces the coordinator\n"
    "  --device D           index or part of the name as in --list-devices; default: the best there is\n"
    "  --memory MIB         device memory to fill at most; default: what the driver offers\n"
    "  --profile            measure every kernel on the device; log where the time went when the layers are "
    "unloaded\n"
    "  --keys DIR           this worker's keys, as 'espalier keygen' makes them (OUT/workers/NAME): every "
    "link is "
    "encrypted,\n"
    "                       and only the cluster's workers reach this one; NAME becomes the default of "
    "--name\n"
    "  --insecure           bind an address that other machines reach, though there are no keys: whoever "
    "reaches it\n"
    "                       can use it\n"
    "  --die-with-parent    be killed when the process that started this one ends\n"
    "  --log-level LEVEL    error, warn, info (default), debug or trace\n"
    "  --list-devices       print the Vulkan devices, usable or not and why, and exit\n"
    "  --json               with --list-devices: as JSON\n"
    "  --tune               measure anew which variants of its kernels suit the device, print and keep that, "
    "and exit\n"
    "  --bench WHAT         measure the device alone, print JSON and exit; WHAT is a JSON object ('espalier "
    "bench' "
    "makes it,\n"
    "                       {} does all)\n"
    "  --help, --version\n"
    "\n"
    "Exit status: 0 after SIGTERM, SIGINT or the coordinator's Bye; 1 failed (stderr says why); 2 bad "
    "usage.\n";

struct args {
    const char *model, *connect, *name, *bind, *device, *keys, *cache, *packed, *bench;
    uint64_t memory_bytes, cache_limit_bytes, packed_limit_bytes;
    bool insecure, packed_all, no_packed, die_with_parent, list, json, tune, profile;
    enum esp_log_level level;
};

static int usage(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

static int usage(const char *fmt, ...)
{
    va_list ap;

    fputs("espalier-worker: ", stderr);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputs("\nTry espalier-worker --help.\n", stderr);
    return 2;
}

static bool is_name(const char *s)
{
    size_t n = strlen(s);

    for (size_t i = 0; i < n; i++) {
        if (!isalnum((unsigned char)s[i]) && !strchr("._-", s[i]))
            return false;
    }
    return n >= 1 && n <= ESP_MAX_NAME;
}

static bool is_endpoint(const char *s)
{
    return strlen(s) <= ESP_MAX_ENDPOINT && (strncmp(s, "tcp://", 6) == 0 || strncmp(s, "ipc://", 6) == 0) &&
           s[6];
}

static bool parse_mib(uint64_t *bytes, const char *text)
{
    unsigned long long mib;
    char *end;

    errno = 0;
    mib = strtoull(text, &end, 10);
    if (!isdigit((unsigned char)*text) || *end || errno || mib == 0 || mib > UINT64_MAX >> 20)
        return false;
    *bytes = (uint64_t)mib << 20;
    return true;
}

/** -1: go on; else the exit status. */
static int parse(struct args *a, int argc, char **argv)
{
    enum {
        MODEL = 256,
        CACHE,
        CACHE_LIMIT,
        PACKED,
        PACKED_LIMIT,
        PACKED_ALL,
        NO_PACKED,
        CONNECT,
        NAME,
        BIND,
        DEVICE,
        MEMORY,
        PROFILE,
        INSECURE,
        KEYS,
        DIE,
        LEVEL,
        LIST,
        JSON,
        TUNE,
        BENCH,
        HELP,
        VERSION
    };
    static const struct option options[] = {
        {"model", required_argument, NULL, MODEL},
        {"cache", required_argument, NULL, CACHE},
        {"cache-limit", required_argument, NULL, CACHE_LIMIT},
        {"packed", required_argument, NULL, PACKED},
        {"packed-limit", required_argument, NULL, PACKED_LIMIT},
        {"packed-all", no_argument, NULL, PACKED_ALL},
        {"no-packed", no_argument, NULL, NO_PACKED},
        {"connect", required_argument, NULL, CONNECT},
        {"name", required_argument, NULL, NAME},
        {"bind", required_argument, NULL, BIND},
        {"device", required_argument, NULL, DEVICE},
        {"memory", required_argument, NULL, MEMORY},
        {"profile", no_argument, NULL, PROFILE},
        {"insecure", no_argument, NULL, INSECURE},
        {"keys", required_argument, NULL, KEYS},
        {"die-with-parent", no_argument, NULL, DIE},
        {"log-level", required_argument, NULL, LEVEL},
        {"list-devices", no_argument, NULL, LIST},
        {"json", no_argument, NULL, JSON},
        {"tune", no_argument, NULL, TUNE},
        {"bench", required_argument, NULL, BENCH},
        {"help", no_argument, NULL, HELP},
        {"version", no_argument, NULL, VERSION},
        {NULL, 0, NULL, 0},
    };
    int c;

    memset(a, 0, sizeof *a);
    a->level = ESP_LOG_INFO;
    opterr = 0;
    while ((c = getopt_long(argc, argv, ":", options, NULL)) != -1) {
        switch (c) {
        case MODEL:
            a->model = optarg;
            break;
        case CONNECT:
            a->connect = optarg;
            break;
        case NAME:
            a->name = optarg;
            break;
        case BIND:
            a->bind = optarg;
            break;
        case DEVICE:
            a->device = optarg;
            break;
        case MEMORY:
            if (!parse_mib(&a->memory_bytes, optarg))
                return usage("--memory %s: not a number of MiB", optarg);
            break;
        case CACHE:
            a->cache = optarg;
            break;
        case CACHE_LIMIT:
            if (!parse_mib(&a->cache_limit_bytes, optarg))
                return usage("--cache-limit %s: not a number of MiB", optarg);
            break;
        case PACKED:
            a->packed = optarg;
            break;
        case PACKED_LIMIT:
            if (!parse_mib(&a->packed_limit_bytes, optarg))
                return usage("--packed-limit %s: not a number of MiB", optarg);
            break;
        case PACKED_ALL:
            a->packed_all = true;
            break;
        case NO_PACKED:
            a->no_packed = true;
            break;
        case PROFILE:
            a->profile = true;
            break;
        case KEYS:
            a->keys = optarg;
            break;
        case INSECURE:
            a->insecure = true;
            break;
        case DIE:
            a->die_with_parent = true;
            break;
        case LEVEL:
            if (!esp_log_level_parse(&a->level, optarg))
                return usage("--log-level %s: takes error, warn, info, debug or trace", optarg);
            break;
        case LIST:
            a->list = true;
            break;
        case TUNE:
            a->tune = true;
            break;
        case JSON:
            a->json = true;
            break;
        case BENCH:
            a->bench = optarg;
            break;
        case HELP:
            fputs(help, stdout);
            return 0;
        case VERSION:
            puts("espalier-worker " ESP_VERSION);
            return 0;
        case ':':
            return usage("%s needs a value", argv[optind - 1]);
        default:
            return usage("%s: no such option", argv[optind - 1]);
        }
    }
    if (optind < argc)
        return usage("%s: takes no such argument", argv[optind]);
    if (a->list)
        return -1;
    if (a->json)
        return usage("--json goes with --list-devices");
    if (a->tune)
        return -1;
    if (a->no_packed && (a->packed || a->packed_limit_bytes || a->packed_all))
        return usage("--no-packed goes without --packed, --packed-limit and --packed-all");
    if (a->bench)
        return a->model ? -1 : usage("--bench needs --model");
    if (!a->connect)
        return usage("--connect is missing");
    if (a->model && (a->cache || a->cache_limit_bytes))
        return usage("--cache and --cache-limit are for a worker without --model");
    if (!is_endpoint(a->connect))
        return usage("--connect %s: not tcp://HOST:PORT or ipc://PATH", a->connect);
    if (a->bind && !is_endpoint(a->bind))
        return usage("--bind %s: not tcp://HOST:PORT or ipc://PATH", a->bind);
    if (a->name && !is_name(a->name))
        return usage("--name %s: takes 1 to 63 of [A-Za-z0-9._-]", a->name);
    return -1;
}

/** HOST-PID, the host's name cut and cleaned to what a name may hold. */
static void default_name(char out[ESP_MAX_NAME + 1])
{
    char host[40] = "";

    if (gethostname(host, sizeof host - 1) != 0 || !host[0])
        strcpy(host, "worker");
    for (char *c = host; *c; c++) {
        if (!isalnum((unsigned char)*c) && !strchr("._-", *c))
            *c = '-';
    }
    snprintf(out, ESP_MAX_NAME + 1, "%s-%ld", host, (long)getpid());
}

/** Where the data socket goes when nobody said: private for ipc, else the address that faces the coordinator.
 */
static esp_status default_bind(char *out, size_t n_out, char *dir, size_t n_dir, const char *connect,
                               struct esp_err *err)
{
    const char *base = getenv("XDG_RUNTIME_DIR");
    char host[64];
    esp_status st;

    if (strncmp(connect, "ipc://", 6) != 0) {
        st = esp_address_towards(host, sizeof host, connect, err);
        if (!st)
            snprintf(out, n_out, "tcp://%s:*", host);
        return st;
    }
    if (!base || base[0] != '/' || strlen(base) > 64 ||
        access(base, W_OK) != 0) /* a socket's path has 107 bytes */
        base = "/tmp";
    snprintf(dir, n_dir, "%s/espalier-worker-XXXXXX", base);
    if (!mkdtemp(dir)) {
        st = esp_fail(err, ESP_E_IO, "%s: %s", dir, strerror(errno));
        dir[0] = '\0';
        return st;
    }
    snprintf(out, n_out, "ipc://%s/data", dir);
    return ESP_OK;
}

/**
 * The cache of packed weights; NULL: there is none, for whatever reason. ESPALIER_PACKED stands in for --packed, "off" for
 * --no-packed; "all" for --packed-all.
 */
static struct esp_packed *open_packed(const struct args *a, const struct esp_log *log)
{
    const char *env = getenv("ESPALIER_PACKED"), *where = a->packed;
    const bool all = a->packed_all || (env && strcmp(env, "all") == 0);
    struct esp_packed *packed = NULL;
    char dir[4096];
    struct esp_err err = {0};
    esp_status st = ESP_OK;

    if (a->no_packed || (!where && env && strcmp(env, "off") == 0))
        return NULL;
    if (!where && env && env[0] == '/')
        where = env;
    if (!where) {
        st = esp_file_cache_dir(dir, sizeof dir, "packed", &err);
        where = dir;
    }
    if (!st)
        st = esp_packed_open(&packed, where,
                             a->packed_limit_bytes ? a->packed_limit_bytes : ESP_PACKED_LIMIT_BYTES, all, log,
                             &err);
    if (st)
        esp_log(log, ESP_LOG_WARN, "packed_unusable why=\"%s\" action=quantise_at_every_start", err.text);
    return packed;
}

/** A descriptor that becomes readable on SIGTERM and SIGINT, which from here on end nothing by themselves. */
static int stop_descriptor(void)
{
    sigset_t set;

    signal(SIGPIPE, SIG_IGN); /* stderr may go away before us */
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    if (sigprocmask(SIG_BLOCK, &set, NULL) != 0) /* before any thread is made: they inherit it */
        return -1;
    return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

static esp_status work(const struct args *a, const struct esp_keys *keys, const struct esp_log *log,
                       const char *name, bool *still_busy, struct esp_err *err)
{
    const struct esp_vk_options vk_options = {
        .memory_limit_bytes = a->memory_bytes, .profile = a->profile, .force_class = -1};
    struct rusage used;
    struct esp_worker_options o = {.name = name,
                                   .connect = a->connect,
                                   .insecure = a->insecure,
                                   .keys = keys,
                                   .stop_timeout_ms = STOP_TIMEOUT_MS,
                                   .stop_fd = -1,
                                   .log = log};
    char bind[ESP_MAX_ENDPOINT + 1], dir[128] = "", host[64];
    struct esp_checkpoint *ck = NULL;
    struct esp_vk *vk = NULL;
    struct esp_shelf *shelf = NULL;
    struct esp_packed *packed = NULL;
    const struct esp_vk_report *report;
    esp_status st;

    o.stop_fd = stop_descriptor();
    if (o.stop_fd < 0) {
        st = esp_fail(err, ESP_E_IO, "signalfd: %s", strerror(errno));
        goto done;
    }
    if (a->model) {
        st = esp_checkpoint_open(&ck, a->model, err);
        if (st)
            goto done;
        esp_checkpoint_fingerprint(ck, o.fingerprint);
    }
    st = esp_vk_open(&vk, a->device, &vk_options, log, err);
    if (!st)
        st = esp_vk_measure(vk, err);
    if (st)
        goto done;
    vk->packed = packed = open_packed(a, log);
    report = esp_vk_report(vk);
    o.device = (struct esp_msg_device){.name = report->name,
                                       .driver = report->driver,
                                       .variant = report->variant,
                                       .type = report->type,
                                       .memory_bytes = report->memory_bytes,
                                       .max_alloc_bytes = report->max_alloc_bytes,
                                       .bandwidth = report->bandwidth,
                                       .matmul_rate = report->matmul_rate};
    esp_log(log, ESP_LOG_INFO,
            "device=\"%s\" driver=\"%s\" variant=%s memory_mib=%llu gb_s=%.1f gflop_s=%.0f", report->name,
            report->driver, report->variant, (unsigned long long)(report->memory_bytes >> 20),
            report->bandwidth * 1e-9, report->matmul_rate * 1e-9);
    if (a->bind)
        snprintf(bind, sizeof bind, "%s", a->bind);
    else
        st = default_bind(bind, sizeof bind, dir, sizeof dir, a->connect, err);
    if (st)
        goto done;
    o.bind = bind;
    if (strncmp(a->connect, "tcp://", 6) == 0 && !esp_address_towards(host, sizeof host, a->connect, NULL))
        o.advertise_host = host;
    o.streams = !a->model;
    o.vk = vk;
    o.cache_dir = a->cache;
    o.cache_limit_bytes = a->cache_limit_bytes;
    if (a->model)
        st = esp_shelf_create(&shelf, vk, ck, NULL, NULL, err);
    if (st)
        goto done;
    st = esp_worker_serve(&o, shelf, still_busy, err);
    if (getrusage(RUSAGE_SELF, &used) == 0)
        esp_log(log, ESP_LOG_INFO, "peak_memory_mib=%ld", used.ru_maxrss / 1024);
done:
    if (dir[0]) {
        unlink(bind + strlen("ipc://"));
        rmdir(dir);
    }
    if (*still_busy) /* another thread is in the middle of these */
        return st;
    esp_shelf_destroy(&shelf);
    esp_packed_destroy(&packed);
    esp_vk_close(&vk);
    esp_checkpoint_destroy(&ck);
    if (o.stop_fd >= 0)
        close(o.stop_fd);
    return st;
}

/** --tune, to its exit status. */
static int tune(const struct args *a, const struct esp_log *log)
{
    const struct esp_vk_options options = {.memory_limit_bytes = a->memory_bytes, .force_class = -1};
    struct esp_vk *vk = NULL;
    struct esp_err err = {0};
    esp_status st = esp_vk_open(&vk, a->device, &options, log, &err);

    if (!st)
        st = esp_vk_tune(vk, true, stdout, &err);
    if (st)
        fprintf(stderr, "espalier-worker: %s\n", err.text);
    esp_vk_close(&vk);
    return st || fflush(stdout) != 0 ? 1 : 0;
}

int main(int argc, char **argv)
{
    pid_t parent = getppid();
    struct esp_keys *keys = NULL;
    struct args a;
    struct esp_log log;
    struct esp_err err = {0};
    char name[ESP_MAX_NAME + 1];
    bool still_busy = false;
    esp_status st;
    int rc = parse(&a, argc, argv);

    if (rc >= 0)
        return rc;
    if (a.list) {
        st = esp_vk_list(stdout, a.json, &err);
        if (st)
            fprintf(stderr, "espalier-worker: %s\n", err.text);
        return st || fflush(stdout) != 0 ? 1 : 0;
    }
    if (a.die_with_parent) {
        if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0) {
            fprintf(stderr, "espalier-worker: prctl: %s\n", strerror(errno));
            return 1;
        }
        if (getppid() != parent) /* it went before the request stood */
            return 1;
    }
    if (a.keys) {
        st = esp_keys_open(&keys, a.keys, ESP_MEMBER_WORKER, &err);
        if (st) {
            fprintf(stderr, "espalier-worker: %s\n", err.text);
            return 1;
        }
    }
    if (a.name || keys)
        snprintf(name, sizeof name, "%s", a.name ? a.name : keys->name);
    else
        default_name(name);
    esp_log_init(&log, name);
    log.level = a.level;
    if (a.tune)
        return tune(&a, &log);
    if (a.bench) {
        const bool cached = a.packed || a.packed_all || getenv("ESPALIER_PACKED"); /* if somebody asks */
        struct esp_packed *packed = cached ? open_packed(&a, &log) : NULL;
        const struct esp_bench_options o = {.model = a.model,
                                            .device = a.device,
                                            .memory_bytes = a.memory_bytes,
                                            .packed = packed,
                                            .what = a.bench};
        st = esp_bench_run(&o, stdout, &log, &err);
        esp_packed_destroy(&packed);
        if (st)
            fprintf(stderr, "espalier-worker: %s\n", err.text);
        return st ? 1 : 0;
    }
    st = work(&a, keys, &log, name, &still_busy, &err);
    if (st)
        fprintf(stderr, "espalier-worker: %s: %s\n", name, err.text);
    if (still_busy)
        _exit(st ? 1 : 0); /* exit would take away what that thread is using */
    esp_keys_destroy(&keys);
    return st ? 1 : 0;
}
