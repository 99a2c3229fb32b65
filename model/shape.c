#include "model/shape.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "model/preset.h"
#include "model/remote.h"
#include "model/roles.h"

#define BLOCK_BYTES (16u << 20) /* of random weights; tensors are pieced together from it */
#define SLACK_PAGES 256u        /* pieces begin at so many different pages */
#define PAGE_BYTES  4096u       /* where they begin is a multiple of the system's page if that is larger */
#define STD         0.02
#define NAME_MAX_   64

bool esp_shape_named(const char *model)
{
    return strncmp(model, ESP_SHAPE_PREFIX, strlen(ESP_SHAPE_PREFIX)) == 0;
}

static esp_status no_such(const char *model, struct esp_err *err)
{
    char all[400] = "";

    for (size_t i = 0; esp_checkpoint_preset_name(i); i++) {
        const size_t n = strlen(all);
        snprintf(all + n, sizeof all - n, "%s%s", i ? ", " : "", esp_checkpoint_preset_name(i));
    }
    return esp_fail(err, ESP_E_ARG, "%s: no such shape; there are %s", model, all);
}

bool esp_shape_layers(uint32_t layers[2], const char *text)
{
    for (int i = 0; i < 2; i++) {
        layers[i] = 0;
        for (int n = 0; *text >= '0' && *text <= '9' && n < 4; n++)
            layers[i] = layers[i] * 10 + (uint32_t)(*text++ - '0');
        if (layers[i] == 0 || *text++ != (i == 0 ? '/' : '\0'))
            return false;
    }
    return true;
}

/* NAME or NAME,V/T behind the prefix. Layers left out: all. */
static bool parse(const char *text, char name[NAME_MAX_], uint32_t layers[2])
{
    const char *comma = strchr(text, ',');
    const size_t n = comma ? (size_t)(comma - text) : strlen(text);

    layers[0] = layers[1] = UINT32_MAX;
    if (n == 0 || n >= NAME_MAX_)
        return false;
    memcpy(name, text, n);
    name[n] = '\0';
    return !comma || esp_shape_layers(layers, comma + 1);
}

/* Bits of a bfloat16 nearest to v, which is finite. */
static uint16_t bf16(double v)
{
    const float f = (float)v;
    uint32_t bits;

    memcpy(&bits, &f, sizeof bits);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* The sum of four 16-bit numbers is near enough to normal. splitmix64, as tests/support/rand.c has it. */
static void fill(uint16_t *to, size_t n)
{
    const double scale = STD / (65536.0 * 0.57735); /* the sum's own deviation: sqrt(4/12) of 65536 */
    uint64_t state = 1;

    for (size_t i = 0; i < n; i++) {
        uint64_t z = state += 0x9e3779b97f4a7c15;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
        z = (z ^ z >> 27) * 0x94d049bb133111eb;
        z ^= z >> 31;
        const uint32_t sum = (uint32_t)((z & 0xffff) + (z >> 16 & 0xffff) + (z >> 32 & 0xffff) + (z >> 48));
        to[i] = bf16(((double)sum - 2.0 * 65535.0) * scale);
    }
}

/* A file in memory that holds the block. */
static esp_status block_make(int *out, struct esp_err *err)
{
    const size_t n_bytes = BLOCK_BYTES + (size_t)SLACK_PAGES * PAGE_BYTES;
    int fd = memfd_create("espalier-shape", MFD_CLOEXEC);
    void *at = MAP_FAILED;

    *out = -1;
    if (fd >= 0 && ftruncate(fd, (off_t)n_bytes) == 0)
        at = mmap(NULL, n_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) {
        esp_fail(err, ESP_E_IO, "random weights: %s", strerror(errno));
        if (fd >= 0)
            close(fd);
        return ESP_E_IO;
    }
    fill(at, n_bytes / sizeof(uint16_t));
    munmap(at, n_bytes);
    *out = fd;
    return ESP_OK;
}

/* What the config calls for, all of it bfloat16. @param shapes  four dimensions a tensor, the claims point there */
static uint32_t claim(struct esp_remote_tensor *out, uint64_t *shapes, const struct esp_config *c)
{
    uint32_t n = 0;

    for (int role = 0; role < ESP_N_ROLE; role++) {
        for (uint32_t i = 0; i < esp_role_count(c, (enum esp_role)role); i++, n++) {
            if (!out)
                continue;
            out[n] = (struct esp_remote_tensor){.role = (uint32_t)role, .layer = i, .dtype = ESP_BF16};
            out[n].n_dim = esp_role_shape(shapes + 4 * (size_t)n, c, (enum esp_role)role);
            out[n].shape = shapes + 4 * (size_t)n;
        }
    }
    return n;
}

/* Every tensor's chunks are views of the block, from different pages on. */
static esp_status map_all(struct esp_checkpoint *ck, struct esp_err *err)
{
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    uint32_t turn = 0;
    int fd;
    esp_status st = block_make(&fd, err);

    for (uint32_t i = 0; !st && i < esp_remote_n_tensor(ck); i++) {
        const uint64_t n = esp_chunk_count(esp_remote_at(ck, i)->n_bytes, BLOCK_BYTES);
        for (uint64_t k = 0; !st && k < n; k++) {
            const uint64_t at = (turn++ * 37u % SLACK_PAGES) * (uint64_t)PAGE_BYTES;
            st = esp_remote_map(ck, i, k, fd, at / page * page, err);
        }
    }
    if (fd >= 0)
        close(fd); /* the mappings keep it */
    return st;
}

esp_status esp_shape_config(char **out, const char *model, struct esp_err *err)
{
    char name[NAME_MAX_];
    uint32_t layers[2];

    *out = NULL;
    if (parse(model + strlen(ESP_SHAPE_PREFIX), name, layers))
        *out = esp_checkpoint_preset_cut(name, layers[0], layers[1]);
    return *out ? ESP_OK : no_such(model, err);
}

esp_status esp_shape_open(struct esp_checkpoint **out, const char *model, struct esp_err *err)
{
    char *config;
    uint32_t n;
    struct esp_remote_tensor *tensors = NULL;
    struct esp_checkpoint *ck = NULL;
    struct esp_config c;
    uint64_t *shapes = NULL;
    esp_status st = esp_shape_config(&config, model, err);

    *out = NULL;
    if (st)
        return st;
    st = esp_config_parse(&c, config, strlen(config), NULL, 0, NULL, 0, err);
    if (st)
        goto done;
    n = claim(NULL, NULL, &c);
    tensors = calloc(n, sizeof *tensors);
    shapes = calloc(n, 4 * sizeof *shapes);
    if (!tensors || !shapes) {
        st = esp_fail(err, ESP_E_NOMEM, "%s: %u tensors", model, n);
        goto done;
    }
    claim(tensors, shapes, &c);
    st = esp_checkpoint_open_remote(&ck, config, strlen(config), tensors, n, BLOCK_BYTES, model, err);
    if (!st)
        st = map_all(ck, err);
    if (st)
        goto done;
    *out = ck;
    ck = NULL;
done:
    esp_checkpoint_destroy(&ck);
    free(tensors);
    free(shapes);
    free(config);
    return st;
}
