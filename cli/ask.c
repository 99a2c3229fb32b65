#include "cli/ask.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/input.h"
#include "cli/signals.h"
#include "coordinator/sizing.h"
#include "model/checkpoint.h"
#include "model/shape.h"

#define MODEL_IS                                                                                             \
    "a Hugging Face directory, as 'huggingface-cli download google/paligemma-3b-mix-224' leaves it"

/* Room for one request and little more: a coordinator's own default is for several. */
#define LEAST_CONTEXT    2048
#define CONTEXT_STEP     256
#define KV_BLOCK         32    /* tokens */
#define MOST_AT_ONCE     32768 /* tokens of KV cache for many requests at once, unless more are asked for */
#define CONTEXTS_BY_SELF 4     /* a coordinator's default of --kv-tokens, in contexts */

void esp_where_args(struct esp_where *where, struct esp_arg args[ESP_N_CLUSTER_ARGS])
{
    const struct esp_arg table[ESP_N_CLUSTER_ARGS] = {
        {"model", 'm', ESP_ARG_TEXT, "DIR", "The checkpoint: " MODEL_IS ". Default: $ESPALIER_MODEL.",
         &where->model, 0, 0, false, NULL},
        {"connect", 0, ESP_ARG_TEXT, "ENDPOINT",
         "Use the cluster whose coordinator serves there (tcp://HOST:PORT) instead of starting one on this "
         "machine.",
         &where->connect, 0, 0, false, NULL},
        {"keys", 0, ESP_ARG_TEXT, "DIR",
         "With --connect: this client's keys, as 'espalier keygen' makes them (OUT/clients/NAME), for a "
         "cluster "
         "that has keys.",
         &where->keys, 0, 0, false, NULL},
        {"patience", 0, ESP_ARG_U32, "SECONDS",
         "With --connect: how long the coordinator may be silent, and come back. Default: 10 before a "
         "request, 60 "
         "during one.",
         &where->patience, 1, 86400, false, &where->patience_given},
        {"workers", 0, ESP_ARG_U32, "N",
         "Workers to start on this machine, 1 to 64. Default: one for each --device, else 2.",
         &where->workers, 1, ESP_EMBED_MAX_WORKERS, false, &where->workers_given},
        {"device", 'd', ESP_ARG_LIST, "D,...",
         "Vulkan devices of the workers, by index or name ('espalier devices' lists them), in turn.",
         &where->devices, 0, 0, false, NULL},
        {"split", 0, ESP_ARG_TEXT, "V/T,...",
         "Layers of each worker, vision/text (2/1,0/2), instead of placing them by measured speed and "
         "memory.",
         &where->split, 0, 0, false, NULL},
        {"memory", 0, ESP_ARG_U32, "MIB",
         "Device memory that each worker may fill. Default: what the device offers.", &where->memory_mib, 1,
         1u << 30, false, NULL},
        {"context", 0, ESP_ARG_U32, "TOKENS",
         "Longest sequence, image tokens included. Default: what the request needs, at least 2048.",
         &where->context, 2, ESP_MAX_CONTEXT, false, &where->context_given},
        {"kv-tokens", 0, ESP_ARG_U32, "TOKENS",
         "Room for keys and values, shared by all sequences. Default: enough for the context.",
         &where->kv_tokens, 1, 1u << 24, false, NULL},
        {"weights", 0, ESP_ARG_TEXT, "TYPE",
         "What workers hold weights as: stored (as the files have them, the default), bf16, f16, f32, q8 "
         "(8.5 bits a weight) or q4 (4.5 in most of the decoder, else q8). The last two are smaller and "
         "faster, "
         "and do not give quite the same answers.",
         &where->weights, 0, 0, false, NULL},
        {"final-softcap", 0, ESP_ARG_FLAG, NULL,
         "Apply the final soft-cap that a PaliGemma 2 config names (off in the reference).",
         &where->final_softcap, 0, 0, false, NULL},
    };
    memcpy(args, table, sizeof table);
}

void esp_input_args(struct esp_ask *ask, struct esp_arg args[ESP_N_INPUT_ARGS])
{
    args[0] = (struct esp_arg){
        "image",
        'i',
        ESP_ARG_TEXTS,
        "FILE",
        "A PNG or JPEG picture, - for standard input. Several: give it several times, in order.",
        &ask->images,
        0,
        0,
        false,
        NULL};
}

void esp_output_args(struct esp_ask *ask, struct esp_arg args[ESP_N_OUTPUT_ARGS])
{
    const struct esp_arg table[ESP_N_OUTPUT_ARGS] = {
        {"json", 0, ESP_ARG_FLAG, NULL, "One JSON object on standard output, at the end.", &ask->json, 0, 0,
         false, NULL},
        {"trace", 0, ESP_ARG_TEXT, "FILE",
         "Write every intermediate tensor of the first step to FILE (safetensors, f32).", &ask->trace, 0, 0,
         false, NULL},
        {"verbose", 'v', ESP_ARG_COUNT, NULL,
         "Say more on standard error: timing and the daemons' info (peak memory at the end); -vv: their "
         "debug, and "
         "time by kernel; -vvv: their trace.",
         &ask->verbose, 0, 0, false, NULL},
    };
    memcpy(args, table, sizeof table);
}

/* ---- rules ---- */

int esp_where_check(const struct esp_command_help *command, struct esp_where *where)
{
    const char *env = getenv("ESPALIER_MODEL");
    enum esp_wtype weights;

    if (!where->model && env && *env)
        where->model = env;
    if (where->connect) {
        const struct {
            const char *name;
            bool given;
        } local[] = {{"workers", where->workers_given},   {"device", where->devices.n > 0},
                     {"split", where->split != NULL},     {"memory", where->memory_mib > 0},
                     {"context", where->context_given},   {"kv-tokens", where->kv_tokens > 0},
                     {"weights", where->weights != NULL}, {"final-softcap", where->final_softcap}};
        for (size_t i = 0; i < sizeof local / sizeof local[0]; i++) {
            if (local[i].given)
                return esp_args_bad(command,
                                    "--%s is for a cluster started here; the one at --connect has its own",
                                    local[i].name);
        }
        return ESP_ARGS_GO_ON;
    }
    if (where->patience_given)
        return esp_args_bad(command,
                            "--patience goes with --connect: what is started here ends with this command");
    if (!where->model)
        return esp_args_bad(command, "no model: give --model DIR (" MODEL_IS "), or set ESPALIER_MODEL");
    if (where->weights && !esp_wtype_parse(&weights, where->weights))
        return esp_args_bad(command, "--weights: '%s', takes stored, bf16, f16, f32, q8 or q4",
                            where->weights);
    if (!where->workers_given)
        where->workers = where->devices.n > 0 ? where->devices.n : ESP_DEFAULT_WORKERS;
    if (where->workers > ESP_EMBED_MAX_WORKERS)
        return esp_args_bad(command, "--device: %u devices, at most %u workers run here", where->workers,
                            ESP_EMBED_MAX_WORKERS);
    return ESP_ARGS_GO_ON;
}

int esp_ask_check(const struct esp_command_help *command, struct esp_ask *ask)
{
    uint32_t n_stdin = ask->prompt && strcmp(ask->prompt, "-") == 0;

    if (ask->images.n > ESP_MAX_BLOBS)
        return esp_args_bad(command, "--image: %u pictures, at most %u in one request", ask->images.n,
                            ESP_MAX_BLOBS);
    for (uint32_t i = 0; i < ask->images.n; i++)
        n_stdin += strcmp(ask->images.at[i], "-") == 0;
    if (n_stdin > 1)
        return esp_args_bad(command, "standard input (-) can be read once only");
    if (ask->where.keys && !ask->where.connect)
        return esp_args_bad(command,
                            "--keys goes with --connect: what is started here talks over private sockets");
    return esp_where_check(command, &ask->where);
}

static esp_status read_images(struct esp_ask *ask, struct esp_msg *request, struct esp_err *err)
{
    for (uint32_t i = 0; i < ask->images.n; i++) {
        esp_status st = esp_input_picture(&ask->blob[i], &request->blob[i].n_bytes, ask->images.at[i], err);
        if (st)
            return st;
        ask->n_blobs = i + 1;
        request->blob[i].data = ask->blob[i];
        ask->image_name[i] = esp_input_wire_name(ask->images.at[i], ask->where.connect != NULL);
        if (!ask->image_name[i])
            return esp_fail(err, ESP_E_NOMEM, "out of memory");
    }
    request->n_blobs = ask->n_blobs;
    request->request.n_images = ask->n_blobs;
    request->request.image_names = (const char *const *)ask->image_name;
    return ESP_OK;
}

static esp_status read_prompt(struct esp_ask *ask, struct esp_msg *request, struct esp_err *err)
{
    const char *suffix = request->request.suffix;
    size_t n = 0;

    if (strcmp(ask->prompt, "-") == 0) {
        void *text;
        esp_status st = esp_input_read(&text, &n, STDIN_FILENO, "standard input", 4096, ESP_MAX_TEXT, err);
        if (st)
            return st;
        ask->prompt_read = text;
        if (strlen(text) != n)
            return esp_fail(err, ESP_E_FORMAT, "the prompt on standard input holds a NUL character");
        if (n > 0 && ask->prompt_read[n - 1] == '\n') /* the line's end is not part of the prompt */
            ask->prompt_read[n - 1] = '\0';
        ask->prompt = ask->prompt_read;
    }
    n = strlen(ask->prompt);
    if (n > ESP_MAX_TEXT || (suffix && strlen(suffix) > ESP_MAX_TEXT))
        return esp_fail(err, ESP_E_LIMIT, "the prompt or suffix has more than %d bytes", ESP_MAX_TEXT);
    if (!esp_input_is_utf8(ask->prompt, n))
        return esp_fail(err, ESP_E_ARG, "the prompt is not UTF-8");
    if (suffix && !esp_input_is_utf8(suffix, strlen(suffix)))
        return esp_fail(err, ESP_E_ARG, "the suffix is not UTF-8");
    request->request.prompt = ask->prompt;
    return ESP_OK;
}

esp_status esp_ask_check_writable(const char *path, struct esp_err *err)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

    if (fd >= 0)
        unlink(path);
    else if (errno == EEXIST)
        fd = open(path, O_WRONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0 && errno != ENXIO) /* a FIFO whose reader has not come yet */
        return esp_fail(err, ESP_E_IO, "%s: %s", path, strerror(errno));
    if (fd >= 0)
        close(fd);
    return ESP_OK;
}

/* ---- the cluster ---- */

esp_status esp_ask_check_model(const char *option, const char *dir, struct esp_config *config,
                               struct esp_err *err)
{
    struct esp_checkpoint *ck;
    struct stat info;
    esp_status st;

    if (!esp_shape_named(dir) && stat(dir, &info) != 0)
        return esp_fail(err, ESP_E_IO, "%s %.200s: %s; expected " MODEL_IS, option, dir, strerror(errno));
    if (!esp_shape_named(dir) && !S_ISDIR(info.st_mode))
        return esp_fail(err, ESP_E_IO, "%s %.200s: not a directory; expected " MODEL_IS, option, dir);
    st = esp_checkpoint_open(&ck, dir, err);
    if (st)
        return st;
    if (config)
        *config = *esp_checkpoint_config(ck);
    esp_checkpoint_destroy(&ck);
    return ESP_OK;
}

void esp_where_embed_options(const struct esp_where *where, unsigned verbose, struct esp_embed_options *out)
{
    memset(out, 0, sizeof *out);
    out->model = where->model;
    out->n_workers = where->workers;
    out->devices = &where->devices;
    out->split = where->split;
    out->context = where->context;
    out->kv_tokens = where->kv_tokens;
    out->memory_mib = where->memory_mib;
    out->final_softcap = where->final_softcap;
    out->weights = where->weights;
    out->keys = where->keys;
    out->verbose = verbose;
}

/* A byte is a token at worst. */
static uint64_t tokens_needed(const struct esp_ask *ask, const struct esp_msg_request *r)
{
    return (uint64_t)r->n_images * ask->config.vision.n_token + strlen(r->prompt) +
           (r->suffix ? strlen(r->suffix) : 0) + r->max_tokens + 4;
}

/* Room for one request of that size, shared prefixes counted once. */
static void size_for(struct esp_embed_options *options, const struct esp_ask *ask,
                     const struct esp_msg_request *r)
{
    uint64_t need = (tokens_needed(ask, r) + CONTEXT_STEP - 1) / CONTEXT_STEP * CONTEXT_STEP;
    uint64_t n_seqs = r->sampling.beams > 1     ? r->sampling.beams
                      : r->sampling.best_of > 1 ? r->sampling.best_of
                                                : 1;
    uint64_t kv;

    if (options->context == 0)
        options->context = need <= LEAST_CONTEXT     ? LEAST_CONTEXT
                           : need <= ESP_MAX_CONTEXT ? (uint32_t)need
                                                     : ESP_MAX_CONTEXT;
    /* The prefix is shared, the rest is each sequence's own. */
    kv = options->context + n_seqs * (r->max_tokens + CONTEXT_STEP);
    if (options->kv_tokens == 0 && n_seqs > 1 && kv > (uint64_t)CONTEXTS_BY_SELF * options->context)
        options->kv_tokens = kv <= UINT32_MAX ? (uint32_t)kv : UINT32_MAX;
    kv = ask->at_once * (tokens_needed(ask, r) + (n_seqs - 1) * r->max_tokens + n_seqs * KV_BLOCK);
    if (kv > MOST_AT_ONCE)
        kv = MOST_AT_ONCE;
    if (ask->where.kv_tokens == 0 && kv > (uint64_t)CONTEXTS_BY_SELF * options->context &&
        kv > options->kv_tokens)
        options->kv_tokens = (uint32_t)kv;
}

static esp_status start_here(struct esp_ask *ask, const struct esp_msg_request *largest, struct esp_err *err)
{
    struct esp_embed_options options;

    esp_where_embed_options(&ask->where, ask->verbose, &options);
    if (largest)
        size_for(&options, ask, largest);
    return esp_embed_start(&ask->embed, &options, &ask->term, err);
}

esp_status esp_ask_connect(struct esp_ask *ask, const struct esp_msg_request *largest, struct esp_err *err)
{
    esp_status st = ESP_OK;
    const char *endpoint = ask->where.connect;

    if (ask->where.model) {
        st = esp_ask_check_model("--model", ask->where.model, &ask->config, err);
        ask->has_config = st == ESP_OK;
    }
    if (st == ESP_OK)
        st = esp_signals_install(err);
    if (st == ESP_OK && !endpoint) {
        esp_term_progress(&ask->term, "starting %u workers", ask->where.workers);
        st = start_here(ask, largest, err);
        if (st == ESP_OK)
            endpoint = esp_embed_endpoint(ask->embed);
    }
    if (st == ESP_OK)
        st = esp_client_create(&ask->client, endpoint, ask->where.keys, ask->embed, &ask->term, err);
    if (st == ESP_OK && ask->where.patience_given)
        esp_client_set_patience(ask->client, ask->where.patience);
    return st;
}

esp_status esp_ask_open(struct esp_ask *ask, struct esp_msg *request, struct esp_err *err)
{
    esp_status st;

    st = read_prompt(ask, request, err);
    if (st == ESP_OK)
        st = read_images(ask, request, err);
    if (st == ESP_OK && ask->trace)
        st = esp_ask_check_writable(ask->trace, err);
    return st ? st : esp_ask_connect(ask, &request->request, err);
}

void esp_ask_close(struct esp_ask *ask)
{
    esp_term_clear(&ask->term);
    esp_client_destroy(&ask->client);
    esp_embed_stop(&ask->embed);
    for (uint32_t i = 0; i < ask->n_blobs; i++) {
        free(ask->blob[i]);
        free(ask->image_name[i]);
    }
    ask->n_blobs = 0;
    free(ask->prompt_read);
    ask->prompt_read = NULL;
}

/* ---- telling ---- */

void esp_ask_waiting(struct esp_ask *ask, const struct esp_msg_waiting *waiting)
{
    const double mib = 1.0 / (1 << 20);
    const double part = waiting->done < waiting->total ? (double)waiting->done / (double)waiting->total : 1;

    if (waiting->total == 0)
        esp_term_progress(&ask->term, "%s", waiting->what);
    else if (strstr(waiting->what, "load")) /* counts bytes */
        esp_term_progress(&ask->term, "%s: %.0f %%, %.0f of %.0f MiB", waiting->what, 100.0 * part,
                          (double)waiting->done * mib, (double)waiting->total * mib);
    else
        esp_term_progress(&ask->term, "%s: %llu of %llu", waiting->what, (unsigned long long)waiting->done,
                          (unsigned long long)waiting->total);
}

static void layer_range(char *out, size_t n_out, const char *what, uint32_t lo, uint32_t hi)
{
    if (lo >= hi)
        out[0] = '\0';
    else if (hi == lo + 1)
        snprintf(out, n_out, "%s %u", what, lo);
    else
        snprintf(out, n_out, "%s %u-%u", what, lo, hi - 1);
}

void esp_ask_tell_stages(struct esp_ask *ask, const struct esp_msg_accepted *accepted)
{
    bool software = false;

    if (ask->json && !ask->verbose)
        return;
    for (uint32_t i = 0; i < accepted->n_stages; i++) {
        const struct esp_stage_info *s = &accepted->stages[i];
        char enc[48], dec[48];

        layer_range(enc, sizeof enc, "encoder", s->enc_lo, s->enc_hi);
        layer_range(dec, sizeof dec, "decoder", s->dec_lo, s->dec_hi);
        software |= s->software;
        esp_term_line(&ask->term, "%s: %s%s%s on %s%s", s->worker, enc, enc[0] && dec[0] ? ", " : "", dec,
                      s->device, s->software ? " (software)" : "");
    }
    if (software)
        esp_term_line(&ask->term,
                      "A software driver computes this on the CPU: slow, the last resort where there is no "
                      "GPU ('espalier devices').");
}

int esp_ask_failed(struct esp_term *term, const char *command, const struct esp_err *err)
{
    if (err->code == ESP_E_CANCELLED && esp_signals_stop()) {
        esp_term_line(term, "espalier %s: cancelled", command);
        return 128 + esp_signals_stop();
    }
    esp_term_line(term, "espalier %s: %s", command, err->text);
    return ESP_EXIT_FAILED;
}
