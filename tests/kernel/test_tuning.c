/*
 * Tuning on the device at hand: variants that compute what plain's kernels do are taken, one that does not is refused and
 * said so, and what was chosen is found again. A wrong driver is played by kernels that take the weights for another type's.
 */
#include "tests/kernel/rig.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "worker/tune.h"

/* While set, kernels of this operation get the bytes of `from` as if they were `to`. */
static struct {
    enum esp_kernel kernel;
    enum esp_wtype from, to;
} wrong;

/* The linker turns the engine's calls of esp_kernel_find to this one. */
const struct esp_kernel_code *__wrap_esp_kernel_find(enum esp_kernel kernel, enum esp_vk_class cls,
                                                     enum esp_wtype weights);
const struct esp_kernel_code *__real_esp_kernel_find(enum esp_kernel kernel, enum esp_vk_class cls,
                                                     enum esp_wtype weights);
const struct esp_kernel_code *__wrap_esp_kernel_find(enum esp_kernel kernel, enum esp_vk_class cls,
                                                     enum esp_wtype weights)
{
    if (wrong.from && kernel == wrong.kernel && weights == wrong.from)
        weights = wrong.to;
    return __real_esp_kernel_find(kernel, cls, weights);
}

static bool has_choice(void)
{
    if (esp_rig.vk->cls == ESP_VK_GPU)
        return true;
    fprintf(stderr, "the %s kernels have no variants: nothing to look at\n", esp_rig.vk->report.variant);
    return false;
}

/* Tunes; what it printed, to be freed. */
static char *tune(esp_status want)
{
    char *text = NULL;
    size_t n = 0;
    FILE *out = open_memstream(&text, &n);
    esp_status st;

    assert_non_null(out);
    memset(&esp_rig.err, 0, sizeof esp_rig.err);
    st = esp_vk_tune(esp_rig.vk, true, out, &esp_rig.err);
    assert_int_equal(fclose(out), 0);
    fputs(text, stderr);
    if (st != want)
        fail_msg("%s: %s", esp_status_name(st), esp_rig.err.text);
    return text;
}

static bool built(enum esp_wtype type)
{
    return __real_esp_kernel_find(ESP_K_MATMUL_COOP, ESP_VK_GPU, type) != NULL;
}

static bool is_cpu(void)
{
    return esp_rig.vk->report.type == VK_PHYSICAL_DEVICE_TYPE_CPU;
}

static void test_right(void **state)
{
    char *text;

    if (!has_choice())
        return;
    text = tune(ESP_OK);
    assert_null(strstr(text, "wrong results"));
    if (!esp_rig.vk->n_coop)
        fprintf(stderr, "no cooperative matrices: looked at without\n");
    for (int t = ESP_W_BF16; t < ESP_N_WTYPE; t++) {
        const struct esp_vk_choice *c = &esp_rig.vk->choice[t];
        if (is_cpu()) /* takes what is right; a GPU may be faster without */
            assert_int_equal(c->coop.m > 0, built((enum esp_wtype)t) && esp_rig.vk->n_coop > 0);
        if (c->coop.m)
            assert_true(esp_tune_tile_fits(esp_rig.vk, &c->coop, c->tile_m, c->tile_n));
    }
    free(text);
}

static void test_wrong_matrices(void **state)
{
    static const enum esp_wtype pairs[][2] = {
        {ESP_W_BF16, ESP_W_F16}, {ESP_W_Q8, ESP_W_Q4}, {ESP_W_Q4, ESP_W_Q8}};
    char *text;

    if (!has_choice())
        return;
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++) {
        const enum esp_wtype bad = pairs[i][0], good = pairs[i][1];
        if (!esp_rig.vk->n_coop || !built(bad)) {
            fprintf(stderr, "no cooperative matrices: nothing to refuse\n");
            return;
        }
        wrong.kernel = ESP_K_MATMUL_COOP;
        wrong.from = bad;
        wrong.to = good;
        text = tune(ESP_OK);
        wrong.from = ESP_W_NONE;
        assert_non_null(strstr(text, "wrong results: refused"));
        assert_int_equal(esp_rig.vk->choice[bad].coop.m, 0);
        if (is_cpu())
            assert_int_not_equal(esp_rig.vk->choice[good].coop.m, 0);
        free(text);
    }
}

/* There is nothing to take its place. */
static void test_wrong_matvec(void **state)
{
    if (!has_choice())
        return;
    wrong.kernel = ESP_K_MATVEC;
    wrong.from = ESP_W_BF16;
    wrong.to = ESP_W_F16;
    free(tune(ESP_E_DEVICE));
    wrong.from = ESP_W_NONE;
    assert_non_null(strstr(esp_rig.err.text, "ESPALIER_KERNELS=plain"));
}

/* The one file of tuning in a directory; what it holds, to be freed. */
static char *read_choice(char *path, size_t n, const char *dir)
{
    char *text = esp_rig_alloc(1, 4096);
    struct dirent *e;
    DIR *d = opendir(dir);
    FILE *f;

    assert_non_null(d);
    *path = '\0';
    while ((e = readdir(d)))
        if (strncmp(e->d_name, "tuning-", 7) == 0)
            assert_true((size_t)snprintf(path, n, "%s/%s", dir, e->d_name) < n);
    closedir(d);
    f = fopen(path, "rb");
    assert_non_null(f);
    assert_true(fread(text, 1, 4095, f) > 0);
    fclose(f);
    return text;
}

static void remove_all(const char *dir)
{
    char path[512];
    struct dirent *e;
    DIR *d = opendir(dir);

    assert_non_null(d);
    while ((e = readdir(d)))
        if (e->d_name[0] != '.' && (size_t)snprintf(path, sizeof path, "%s/%s", dir, e->d_name) < sizeof path)
            unlink(path);
    closedir(d);
    rmdir(dir);
}

/* The first to tune decides; the next ones take that; a file that is none of ours is written over. */
static void test_remembered(void **state)
{
    char dir[] = "/tmp/espalier-tuning-XXXXXX", path[512];
    const struct esp_vk_options options = {.cache_dir = dir, .force_class = ESP_VK_GPU};
    struct esp_vk_choice first[ESP_N_WTYPE];
    struct esp_vk *vk;
    struct esp_log log;
    char *text = NULL, *again;
    FILE *f;

    if (!has_choice())
        return;
    assert_non_null(mkdtemp(dir));
    esp_log_init(&log, "test");
    for (int i = 0; i < 3; i++) {
        esp_rig_must(esp_vk_open(&vk, getenv("ESPALIER_DEVICE"), &options, &log, &esp_rig.err));
        if (i == 1)
            assert_memory_equal(vk->choice, first, sizeof first); /* before it is asked to tune */
        esp_rig_must(esp_vk_tune(vk, false, NULL, &esp_rig.err));
        if (i == 0) {
            text = read_choice(path, sizeof path, dir);
            assert_true(esp_tune_parse(first, vk, text));
        }
        if (i < 2 || is_cpu()) /* measured anew, a GPU may do otherwise */
            assert_memory_equal(vk->choice, first, sizeof first);
        esp_vk_close(&vk);
        if (i == 1) { /* the third finds something else */
            f = fopen(path, "wb");
            assert_non_null(f);
            assert_true(fputs("espalier-tuning 1 coop=1\n", f) >= 0);
            assert_int_equal(fclose(f), 0);
        }
    }
    again = read_choice(path, sizeof path, dir);
    if (is_cpu())
        assert_string_equal(again, text);
    free(text);
    free(again);
    remove_all(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_right), cmocka_unit_test(test_wrong_matrices),
                                       cmocka_unit_test(test_wrong_matvec),
                                       cmocka_unit_test(test_remembered)};

    setenv("ESPALIER_TUNE", "1", 1); /* CPU drivers too */
    return esp_rig_main("tuning", tests, sizeof tests / sizeof tests[0]);
}
