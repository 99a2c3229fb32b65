/* espalier keygen: the keys of a cluster, a folder for each of its members. What is there is never replaced: running it
 * again adds members. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/args.h"
#include "cli/command.h"
#include "proto/keys.h"

#define COORDINATOR "coordinator"
#define WORKERS     "workers"
#define CLIENTS     "clients"
#define PATH_BYTES  4096

static const struct esp_command_help help = {
    .name = "keygen",
    .synopsis = "--out DIR [--worker NAME]... [--client NAME]...",
    .about =
        "Makes the keys of a cluster whose links are encrypted and closed to others: DIR/coordinator, a "
        "folder\n"
        "DIR/workers/NAME for each worker and DIR/clients/NAME for each client. Each folder is all that its "
        "owner\n"
        "needs: copy it to that machine and name it with --keys. Run again with further names, it adds them "
        "and\n"
        "brings the allow lists up to date; it never replaces a key. Keep DIR itself: it can let in anyone.\n"
        "docs/keys.md tells the rest.\n",
    .examples = "  espalier keygen --out keys --worker gpu1 --worker gpu2 --client anna\n"
                "  scp -r keys/workers/gpu1 gpu1:espalier-keys\n"
                "  espalier-coordinator --model DIR --bind tcp://0.0.0.0:5550 --keys keys/coordinator\n"
                "  espalier run --connect tcp://10.0.0.5:5550 --keys keys/clients/anna --image cat.jpg "
                "\"caption en\"\n",
};

struct keygen {
    const char *out;
    struct esp_texts workers, clients;
    struct esp_key_list worker_keys, client_keys; /* the allow lists */
    struct esp_key_list coordinator;              /* its public key */
    unsigned n_made;
};

/* DIR/a/b/c, as many as are given. */
static esp_status join(char out[PATH_BYTES], const char *dir, const char *a, const char *b, const char *c,
                       struct esp_err *err)
{
    int n = snprintf(out, PATH_BYTES, "%s%s%s%s%s%s%s", dir, a ? "/" : "", a ? a : "", b ? "/" : "",
                     b ? b : "", c ? "/" : "", c ? c : "");

    return n > 0 && n < PATH_BYTES ? ESP_OK : esp_fail(err, ESP_E_ARG, "--out %s: too long a path", dir);
}

static esp_status make_folder(const char *dir, const char *a, const char *b, struct esp_err *err)
{
    char path[PATH_BYTES];
    esp_status st = join(path, dir, a, b, NULL, err);

    if (!st && mkdir(path, 0700) != 0 && errno != EEXIST)
        st = esp_fail(err, ESP_E_IO, "%s: %s", path, strerror(errno));
    return st;
}

/* The public key of the secret in folder a/b, which is made if it is missing. */
static esp_status pair_in(uint8_t public_key[ESP_KEY_BYTES], struct keygen *k, const char *a, const char *b,
                          const char *name, struct esp_err *err)
{
    struct esp_key_list list = {0};
    uint8_t secret[ESP_KEY_BYTES] = {0};
    char path[PATH_BYTES], comment[160];
    esp_status st = make_folder(k->out, a, NULL, err);

    if (!st && b)
        st = make_folder(k->out, a, b, err);
    if (!st)
        st = b ? join(path, k->out, a, b, ESP_FILE_SECRET, err)
               : join(path, k->out, a, ESP_FILE_SECRET, NULL, err);
    if (st)
        return st;
    if (access(path, F_OK) == 0) {
        st = esp_key_file_read(&list, path, true, err);
        if (!st && list.n != 1)
            st = esp_fail(err, ESP_E_FORMAT, "%s: %u keys, takes one", path, list.n);
        if (!st)
            st = esp_key_public(public_key, list.at[0].key, err);
    } else {
        st = esp_key_pair_make(public_key, secret, err);
        if (!st)
            st = esp_key_list_add(&list, name, secret, err);
        snprintf(comment, sizeof comment, "Secret key of the %s of an Espalier cluster: for its owner alone.",
                 b ? "member named below" : "coordinator");
        if (!st)
            st = esp_key_file_write(path, &list, true, comment, err);
        k->n_made += !st;
    }
    esp_key_list_finish(&list);
    memset(secret, 0, sizeof secret);
    return st;
}

static esp_status read_allowed(struct esp_key_list *list, const char *dir, const char *file,
                               struct esp_err *err)
{
    char path[PATH_BYTES];
    esp_status st = join(path, dir, COORDINATOR, file, NULL, err);

    return st || access(path, F_OK) != 0 ? st : esp_key_file_read(list, path, false, err);
}

static esp_status write_public(const struct keygen *k, const char *a, const char *b, const char *file,
                               const struct esp_key_list *list, const char *comment, struct esp_err *err)
{
    char path[PATH_BYTES];
    esp_status st = b ? join(path, k->out, a, b, file, err) : join(path, k->out, a, file, NULL, err);

    return st ? st : esp_key_file_write(path, list, false, comment, err);
}

static esp_status add_members(struct keygen *k, struct esp_key_list *list, const char *folder,
                              const struct esp_texts *names, struct esp_err *err)
{
    esp_status st = ESP_OK;

    for (uint32_t i = 0; !st && i < names->n; i++) {
        uint8_t key[ESP_KEY_BYTES];
        const struct esp_key_entry *known = esp_key_list_named(list, names->at[i]);

        st = pair_in(key, k, folder, names->at[i], names->at[i], err);
        if (!st && known && !esp_key_equal(known->key, key))
            st = esp_fail(
                err, ESP_E_ARG,
                "%s is in the allow list with another key than %s/%s/%s has: take its line out first",
                names->at[i], k->out, folder, names->at[i]);
        else if (!st && !known)
            st = esp_key_list_add(list, names->at[i], key, err);
    }
    return st;
}

/* What everybody gets of the others. Folders that were moved away are left alone. */
static esp_status hand_out(const struct keygen *k, struct esp_err *err)
{
    static const char *const list_comment[] = {"Workers that may join: their public keys.",
                                               "Clients that may ask: their public keys."};
    char path[PATH_BYTES];
    esp_status st = write_public(k, COORDINATOR, NULL, ESP_FILE_SERVER, &k->coordinator,
                                 "The coordinator's public key.", err);

    if (!st)
        st = write_public(k, COORDINATOR, NULL, ESP_FILE_WORKERS, &k->worker_keys, list_comment[0], err);
    if (!st)
        st = write_public(k, COORDINATOR, NULL, ESP_FILE_CLIENTS, &k->client_keys, list_comment[1], err);
    for (int clients = 0; clients < 2; clients++) {
        const struct esp_key_list *list = clients ? &k->client_keys : &k->worker_keys;
        const char *folder = clients ? CLIENTS : WORKERS;

        for (uint32_t i = 0; !st && i < list->n; i++) {
            const struct esp_key_list one = {.at = &list->at[i], .n = 1};
            const char *name = list->at[i].name;

            st = join(path, k->out, folder, name, NULL, err);
            if (st || access(path, F_OK) != 0)
                continue;
            st = write_public(k, folder, name, ESP_FILE_SERVER, &k->coordinator,
                              "The coordinator's public key.", err);
            if (!st)
                st = write_public(k, folder, name, "public", &one,
                                  "Its public key: fit to be shown to anyone.", err);
            if (!st && !clients)
                st = write_public(k, folder, name, ESP_FILE_WORKERS, &k->worker_keys, list_comment[0], err);
        }
    }
    return st;
}

static esp_status generate(struct keygen *k, struct esp_err *err)
{
    static char *some_workers[] = {"w0", "w1"}, *some_client[] = {"local"};
    uint8_t key[ESP_KEY_BYTES];
    esp_status st = make_folder(k->out, NULL, NULL, err);

    if (!st)
        st = pair_in(key, k, COORDINATOR, NULL, COORDINATOR, err);
    if (!st)
        st = esp_key_list_add(&k->coordinator, COORDINATOR, key, err);
    if (!st)
        st = read_allowed(&k->worker_keys, k->out, ESP_FILE_WORKERS, err);
    if (!st)
        st = read_allowed(&k->client_keys, k->out, ESP_FILE_CLIENTS, err);
    if (st)
        return st;
    if (k->workers.n == 0 && k->worker_keys.n == 0)
        k->workers = (struct esp_texts){.at = some_workers, .n = 2};
    if (k->clients.n == 0 && k->client_keys.n == 0)
        k->clients = (struct esp_texts){.at = some_client, .n = 1};
    st = make_folder(k->out, WORKERS, NULL, err);
    if (!st)
        st = make_folder(k->out, CLIENTS, NULL, err);
    if (!st)
        st = add_members(k, &k->worker_keys, WORKERS, &k->workers, err);
    if (!st)
        st = add_members(k, &k->client_keys, CLIENTS, &k->clients, err);
    return st ? st : hand_out(k, err);
}

static void tell(const struct keygen *k)
{
    printf("%u new keys; the cluster has %u workers and %u clients\n", k->n_made, k->worker_keys.n,
           k->client_keys.n);
    printf("  %s/%s: for the coordinator's --keys\n", k->out, COORDINATOR);
    for (uint32_t i = 0; i < k->worker_keys.n; i++)
        printf("  %s/%s/%s: for that worker's --keys\n", k->out, WORKERS, k->worker_keys.at[i].name);
    for (uint32_t i = 0; i < k->client_keys.n; i++)
        printf("  %s/%s/%s: for that client's --keys\n", k->out, CLIENTS, k->client_keys.at[i].name);
}

static int names_check(const struct esp_texts *names, const char *option)
{
    for (uint32_t i = 0; i < names->n; i++) {
        if (!esp_key_name_ok(names->at[i]))
            return esp_args_bad(
                &help, "--%s %s: takes 1 to %d of A-Z, a-z, 0-9, '.', '_' and '-', first neither '.' nor '-'",
                option, names->at[i], ESP_MAX_NAME);
    }
    return ESP_ARGS_GO_ON;
}

int esp_command_keygen(int argc, char **argv)
{
    static struct keygen k;
    struct esp_texts workers, clients;
    struct esp_arg options[] = {
        {"out", 'o', ESP_ARG_TEXT, "DIR", "Where the keys go; made if it is missing.", &k.out, 0, 0, false,
         NULL},
        {"worker", 'w', ESP_ARG_TEXTS, "NAME",
         "A worker to make keys for. Several: give it several times. Default for a "
         "new cluster: w0 and w1, as 'espalier up' calls its own.",
         &k.workers, 0, 0, false, NULL},
        {"client", 'c', ESP_ARG_TEXTS, "NAME",
         "A client to make keys for, likewise. Default for a new cluster: local.", &k.clients, 0, 0, false,
         NULL},
    };
    const struct esp_arg_group groups[] = {{"Options", options, sizeof options / sizeof options[0]},
                                           {NULL, NULL, 0}};
    struct esp_err err = {0};
    char **rest;
    int n_rest, r = esp_args_parse(&help, groups, argc, argv, &rest, &n_rest);

    workers = k.workers; /* what the options gathered; defaults may take their place */
    clients = k.clients;
    if (r == ESP_ARGS_GO_ON && n_rest > 0)
        r = esp_args_bad(&help, "'%s': no such argument", rest[0]);
    if (r == ESP_ARGS_GO_ON && !k.out)
        r = esp_args_bad(&help, "where to? give --out DIR");
    if (r == ESP_ARGS_GO_ON)
        r = names_check(&k.workers, "worker");
    if (r == ESP_ARGS_GO_ON)
        r = names_check(&k.clients, "client");
    if (r == ESP_ARGS_GO_ON) {
        r = 0;
        if (generate(&k, &err)) {
            fprintf(stderr, "espalier keygen: %s\n", err.text);
            r = ESP_EXIT_FAILED;
        } else {
            tell(&k);
            if (fflush(stdout) != 0)
                r = ESP_EXIT_FAILED;
        }
        esp_key_list_finish(&k.worker_keys);
        esp_key_list_finish(&k.client_keys);
        esp_key_list_finish(&k.coordinator);
    }
    k.workers = workers;
    k.clients = clients;
    esp_args_free(groups);
    return r;
}
