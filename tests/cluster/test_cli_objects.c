/* Boxes and masks on the command line: a coordinator in this process answers each prompt with the prompt itself. */
#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "objects/rle.h"
#include "picture/image.h"
#include "tests/cluster/cli_json.h"
#include "tests/support/file.h"
#include "tests/support/temp.h"

#define TINY  "tests/golden/data/tiny"
#define SCENE TINY "/images/scene_a.png" /* 133 x 97 */
#define OTHER TINY "/images/scene_b.png"
#define CODEC "models/tiny/vae-oid.npz"

#define BOX_A "<loc0256><loc0128><loc0768><loc0512>"
#define BOX_B "<loc0000><loc0512><loc0512><loc1023>"
#define SEG4  "<seg001><seg020><seg064><seg127>"
#define SEG16 SEG4 SEG4 SEG4 SEG4

#define FOUND     BOX_A " cat ; " BOX_B " black dog"
#define SEGMENTED BOX_A SEG16 " cat ; " BOX_B " black dog"

#define MAX_TOKENS 64

struct fake {
    char dir[32], endpoint[64];
    struct esp_net *net;
    struct script script;
    uint32_t n_asked;
};

static int setup(void **state)
{
    static struct fake f;
    char path[64];

    memset(&f, 0, sizeof f);
    script_open(&f.script, &f.net, f.dir, sizeof f.dir, f.endpoint, sizeof f.endpoint);
    snprintf(path, sizeof path, "%s/state", f.dir);
    setenv("XDG_STATE_HOME", path, 1);
    f.script.self = &f;
    *state = &f;
    return 0;
}

static int teardown(void **state)
{
    struct fake *f = *state;

    script_close(&f->script, &f->net, f->dir);
    return esp_temp_remove(f->dir);
}

/* ---- the coordinator ---- */

static void tell_accepted(struct fake *f, const struct esp_peer *to, uint64_t id)
{
    static const struct esp_stage_info stage = {.worker = "w0", .device = "GPU", .enc_hi = 1, .dec_hi = 1};
    static const uint32_t ids[] = {7, 8};
    static struct esp_msg m = {.kind = ESP_MSG_ACCEPTED};

    m.accepted = (struct esp_msg_accepted){.session = id,
                                           .n_prompt_ids = 2,
                                           .prompt_ids = ids,
                                           .image_tokens = 16,
                                           .n_stages = 1,
                                           .stages = &stage};
    script_tell(&f->script, to, &m);
}

/* The text in tokens: each "<...>" is one, and so is what stands between. The i-th has a log-probability of -i / 10. */
static uint32_t tell_tokens(struct fake *f, const struct esp_peer *to, uint64_t id, const char *text)
{
    static struct esp_msg m = {.kind = ESP_MSG_TOKEN};
    uint32_t n = 0;

    while (*text) {
        const size_t n_text = *text == '<' ? strcspn(text, ">") + 1 : strcspn(text, "<");
        char token[256];

        assert_true(n < MAX_TOKENS && n_text < sizeof token);
        snprintf(token, sizeof token, "%.*s", (int)n_text, text);
        m.token = (struct esp_msg_token){id, n, 100 + n, -0.1 * n, token};
        script_tell(&f->script, to, &m);
        text += n_text;
        n++;
    }
    return n;
}

static void heard(struct script *s, struct child *c, const struct esp_peer *from, const struct esp_msg *msg)
{
    static uint32_t ids[MAX_TOKENS];
    static double logprobs[MAX_TOKENS];
    static struct esp_msg m;
    const struct esp_msg_request *r = &msg->request;
    struct fake *f = s->self;
    uint32_t n = 1;

    if (msg->kind == ESP_MSG_STATUS_QUERY) {
        memset(&m, 0, sizeof m);
        m.kind = ESP_MSG_STATUS;
        m.status = (struct esp_msg_status){.id = msg->status_query.id, .ready = true, .epoch = 1};
        script_tell(s, from, &m);
    }
    if (msg->kind != ESP_MSG_REQUEST)
        return;
    f->n_asked++;
    tell_accepted(f, from, r->id);
    if (r->sampling.beams < 2)
        n = tell_tokens(f, from, r->id, r->prompt);
    memset(&m, 0, sizeof m);
    m.kind = ESP_MSG_DONE;
    m.done = (struct esp_msg_done){.session = r->id,
                                   .best = {.text = r->prompt,
                                            .finish = "length",
                                            .n_ids = n,
                                            .ids = ids,
                                            .n_logprobs = n,
                                            .logprobs = logprobs}};
    if (r->sampling.beams > 1) {
        m.done.n_hypotheses = 1;
        m.done.hypotheses = &m.done.best;
    }
    script_tell(s, from, &m);
}

/* ---- the command line ---- */

static const char *program = ESPALIER;

/* espalier ARGUMENTS --connect ...; a %s in an argument is the test's folder. */
static void run(struct fake *f, struct child *c, bool on_terminal, const char *const *args)
{
    static char filled[32][512];
    const char *all[34];
    size_t n = 0;

    for (; args[n]; n++) {
        const char *mark = strstr(args[n], "%s");

        assert_true(n < 30);
        all[n] = args[n];
        if (mark) {
            snprintf(filled[n], sizeof filled[n], "%.*s%s%s", (int)(mark - args[n]), args[n], f->dir,
                     mark + 2);
            all[n] = filled[n];
        }
    }
    all[n++] = "--connect";
    all[n++] = f->endpoint;
    all[n] = NULL;
    f->script.heard = heard;
    if (on_terminal)
        child_start_on_terminal(c, program, all);
    else
        child_start(c, program, NULL, all);
    child_wait(c, &f->script);
}

static const json_t *object(const json_t *o, size_t i)
{
    return json_array_get(json_object_get(o, "objects"), i);
}

static const char *text_of(const json_t *o, const char *key)
{
    return json_string_value(json_object_get(o, key));
}

static void expect_box(const json_t *o, double y0, double x0, double y1, double x1)
{
    const double want[] = {y0, x0, y1, x1};
    const json_t *box = json_object_get(o, "box");

    assert_int_equal(json_array_size(box), 4);
    for (size_t i = 0; i < 4; i++)
        assert_true(fabs(json_real_value(json_array_get(box, i)) - want[i]) < 1e-9);
}

static struct esp_image picture(const char *path)
{
    struct esp_image image;
    struct esp_err err;
    size_t n;
    void *file = esp_slurp(&n, "%s", path);

    if (esp_image_decode(&image, file, n, NULL, &err))
        fail_msg("%s: %s", path, err.text);
    free(file);
    return image;
}

static void test_boxes(void **state)
{
    struct fake *f = *state;
    const json_t *bad;
    struct child c;
    json_t *o;

    run(f, &c, false,
        (const char *[]){"run", "--image", SCENE, "--json", FOUND " ; <loc0001><loc0002> bird", NULL});
    child_expect(&c, "boxes", 0, NULL, NULL);
    assert_string_equal(ERR(&c), "");
    o = child_json(&c);
    assert_int_equal(json_array_size(json_object_get(o, "objects")), 2);
    assert_string_equal(text_of(object(o, 0), "label"), "cat");
    assert_string_equal(text_of(object(o, 1), "label"), "black dog");
    expect_box(object(o, 0), 97 / 4.0, 133 / 8.0, 97 * 3 / 4.0, 133 / 2.0);
    expect_box(object(o, 1), 0, 133 / 2.0, 97 / 2.0, 133 * 1023 / 1024.0);
    /* tokens 0 to 3, a label, tokens 5 to 8 */
    assert_true(fabs(json_real_value(json_object_get(object(o, 0), "score")) -
                     (1 + exp(-0.1) + exp(-0.2) + exp(-0.3)) / 4) < 1e-9);
    assert_true(fabs(json_real_value(json_object_get(object(o, 1), "score")) -
                     (exp(-0.5) + exp(-0.6) + exp(-0.7) + exp(-0.8)) / 4) < 1e-9);
    for (size_t i = 0; i < 2; i++) {
        assert_true(json_is_null(json_object_get(object(o, i), "mask")));
        assert_true(json_is_null(json_object_get(object(o, i), "rle")));
        assert_true(json_is_null(json_object_get(object(o, i), "seg")));
    }
    assert_int_equal(json_array_size(json_object_get(o, "malformed")), 1);
    bad = json_array_get(json_object_get(o, "malformed"), 0);
    assert_string_equal(text_of(bad, "text"), "<loc0001><loc0002> bird");
    assert_string_equal(text_of(bad, "why"), "2 <loc>: a box has 4");
    assert_int_equal(json_integer_value(json_object_get(bad, "at")), strlen(FOUND " ; "));
    json_decref(o);
    child_finish(&c);
}

/* Beams come all at once: no scores. Without a picture there are no pixels. A beginning that was given counts. */
static void test_less_is_known(void **state)
{
    struct fake *f = *state;
    struct child c;
    json_t *o;

    run(f, &c, false, (const char *[]){"run", "--image", SCENE, "--json", "--beams", "2", FOUND, NULL});
    child_expect(&c, "beams", 0, NULL, NULL);
    o = child_json(&c);
    expect_box(object(o, 0), 97 / 4.0, 133 / 8.0, 97 * 3 / 4.0, 133 / 2.0);
    assert_true(json_is_null(json_object_get(object(o, 0), "score")));
    json_decref(o);
    child_finish(&c);

    run(f, &c, false, (const char *[]){"run", "--json", FOUND, NULL});
    child_expect(&c, "no picture", 0, NULL, NULL);
    o = child_json(&c);
    assert_string_equal(text_of(object(o, 0), "label"), "cat");
    assert_true(json_is_null(json_object_get(object(o, 0), "box")));
    json_decref(o);
    child_finish(&c);

    run(f, &c, false,
        (const char *[]){"run", "--image", SCENE, "--json", "--suffix", "<loc0256><loc0128>",
                         "<loc0768><loc0512> cat ; " BOX_B " dog", NULL});
    child_expect(&c, "suffix", 0, NULL, NULL);
    o = child_json(&c);
    expect_box(object(o, 0), 97 / 4.0, 133 / 8.0, 97 * 3 / 4.0, 133 / 2.0);
    assert_true(json_is_null(json_object_get(object(o, 0), "score")));
    assert_true(json_is_real(json_object_get(object(o, 1), "score")));
    json_decref(o);
    child_finish(&c);
}

/* The mask of the first object: in the JSON and in a file, the same, within its box. Returns how much of it there is. */
static uint64_t expect_mask(const json_t *o, const char *path)
{
    const json_t *rle = json_object_get(object(o, 0), "rle"), *size = json_object_get(rle, "size");
    struct esp_image file = picture(path);
    uint8_t *mask = malloc(97 * 133);
    struct esp_rle read;
    uint64_t area;

    assert_string_equal(text_of(object(o, 0), "mask"), path);
    assert_int_equal(json_integer_value(json_array_get(size, 0)), 97);
    assert_int_equal(json_integer_value(json_array_get(size, 1)), 133);
    assert_int_equal(esp_rle_from_string(&read, text_of(rle, "counts"), 97, 133, NULL), ESP_OK);
    area = esp_rle_area(&read);
    assert_non_null(mask);
    esp_rle_decode(mask, &read);
    assert_int_equal(file.width, 133);
    assert_int_equal(file.height, 97);
    for (uint32_t y = 0; y < 97; y++)
        for (uint32_t x = 0; x < 133; x++) {
            assert_int_equal(file.rgb[3 * (y * 133 + x)], mask[y * 133 + x] ? 255 : 0);
            if (mask[y * 133 + x])
                assert_true(y >= 23 && y < 74 && x >= 16 && x < 67);
        }
    assert_int_equal(json_array_size(json_object_get(object(o, 0), "seg")), 16);
    assert_int_equal(json_integer_value(json_array_get(json_object_get(object(o, 0), "seg"), 15)), 127);
    assert_true(json_is_null(json_object_get(object(o, 1), "rle")));
    assert_true(json_is_null(json_object_get(object(o, 1), "mask")));
    esp_rle_finish(&read);
    esp_image_finish(&file);
    free(mask);
    return area;
}

/* The drawn picture: as large as the given one, another within the boxes, the same far from them. */
static void expect_drawn(const char *path)
{
    struct esp_image given = picture(SCENE), drawn = picture(path);
    uint32_t n_inside = 0;

    assert_int_equal(drawn.width, given.width);
    assert_int_equal(drawn.height, given.height);
    for (uint32_t y = 0; y < 97; y++) {
        for (uint32_t x = 0; x < 133; x++) {
            const size_t p = 3 * (y * 133 + x);
            const bool same = memcmp(drawn.rgb + p, given.rgb + p, 3) == 0;

            if (y >= 80 || (y >= 60 && x >= 80) || (x < 10 && y >= 30))
                assert_true(same);
            n_inside += !same;
        }
    }
    assert_true(n_inside > 2 * 50 + 2 * 50 + 2 * 60); /* lines at least */
    esp_image_finish(&given);
    esp_image_finish(&drawn);
}

static void test_masks_and_output(void **state)
{
    struct fake *f = *state;
    char drawn[64], mask[64], moved[64];
    uint64_t area;
    struct child c;
    json_t *o;

    snprintf(drawn, sizeof drawn, "%s/out.png", f->dir);
    snprintf(mask, sizeof mask, "%s/out.mask-0.png", f->dir);
    snprintf(moved, sizeof moved, "%s/masks/mask-0.png", f->dir);
    run(f, &c, false,
        (const char *[]){"run", "--image", SCENE, "--json", "--mask-codec", CODEC, "-o", "%s/out.png",
                         SEGMENTED, NULL});
    child_expect(&c, "masks", 0, NULL, NULL);
    assert_string_equal(ERR(&c), "");
    o = child_json(&c);
    area = expect_mask(o, mask);
    assert_true(area > 0);
    expect_drawn(drawn);
    json_decref(o);
    child_finish(&c);
    unlink(mask);

    run(f, &c, false,
        (const char *[]){"run", "--image", SCENE, "--json", "--mask-codec", CODEC, "--masks", "%s/masks",
                         SEGMENTED, NULL});
    child_expect(&c, "--masks", 0, NULL, NULL);
    o = child_json(&c);
    assert_int_equal(expect_mask(o, moved), area);
    json_decref(o);
    child_finish(&c);

    /* without a place for files: the run lengths alone */
    run(f, &c, false,
        (const char *[]){"run", "--image", SCENE, "--json", "--mask-codec", CODEC, SEGMENTED, NULL});
    child_expect(&c, "rle alone", 0, NULL, NULL);
    o = child_json(&c);
    assert_true(json_is_null(json_object_get(object(o, 0), "mask")));
    assert_true(json_is_object(json_object_get(object(o, 0), "rle")));
    json_decref(o);
    child_finish(&c);
    assert_int_equal(access(mask, F_OK), -1);
}

/* Makes DIR/model as TINY, with a codec: that of models/tiny, or a file that is none. */
static void make_model(const struct fake *f, bool good)
{
    char dir[64], from[4096], to[512], here[2048];
    DIR *d = opendir(TINY);
    struct dirent *e;

    assert_non_null(d);
    assert_non_null(getcwd(here, sizeof here));
    snprintf(dir, sizeof dir, "%s/model", f->dir);
    mkdir(dir, 0700);
    while ((e = readdir(d))) {
        if (e->d_name[0] == '.')
            continue;
        snprintf(from, sizeof from, "%s/" TINY "/%s", here, e->d_name);
        snprintf(to, sizeof to, "%s/%s", dir, e->d_name);
        symlink(from, to);
    }
    closedir(d);
    snprintf(from, sizeof from, "%s/%s", here, good ? CODEC : TINY "/config.json");
    snprintf(to, sizeof to, "%s/vae-oid.npz", dir);
    unlink(to);
    assert_int_equal(symlink(from, to), 0);
}

/* What is beside the model is taken; what is none is told, and masks are left out; so they are where there is none. */
static void test_where_the_codec_is(void **state)
{
    static const struct {
        const char *model, *said;
        bool good, mask;
    } cases[] = {
        {"%s/model", NULL, true, true},
        {"%s/model", "The answer's masks are left out: ", false, false},
        {TINY, "name it with --mask-codec", false, false},
        {NULL, "name it with --mask-codec", false, false},
    };
    struct fake *f = *state;

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const char *args[] = {"run",          "--image", SCENE,
                              "--json",       SEGMENTED, cases[i].model ? "--model" : NULL,
                              cases[i].model, NULL};
        struct child c;
        json_t *o;

        make_model(f, cases[i].good);
        run(f, &c, false, args);
        child_expect(&c, "codec", 0, cases[i].said, NULL);
        if (!cases[i].said)
            assert_string_equal(ERR(&c), "");
        o = child_json(&c);
        assert_int_equal(json_is_object(json_object_get(object(o, 0), "rle")), cases[i].mask);
        assert_int_equal(json_array_size(json_object_get(object(o, 0), "seg")), 16);
        json_decref(o);
        child_finish(&c);
    }
}

/* `make install` puts the program into a folder beside the one of its data. */
static void test_installed_codec(void **state)
{
    struct fake *f = *state;
    char command[4096], copy[64];
    struct child c;
    json_t *o;

    snprintf(command, sizeof command,
             "mkdir -p %s/usr/bin %s/usr/share/espalier && cp %s %s/usr/bin/espalier && "
             "cp " CODEC " %s/usr/share/espalier",
             f->dir, f->dir, ESPALIER, f->dir, f->dir);
    assert_int_equal(system(command), 0);
    snprintf(copy, sizeof copy, "%s/usr/bin/espalier", f->dir);
    program = copy;
    run(f, &c, false, (const char *[]){"run", "--image", SCENE, "--json", SEGMENTED, NULL});
    program = ESPALIER;
    child_expect(&c, "installed", 0, NULL, NULL);
    assert_string_equal(ERR(&c), "");
    o = child_json(&c);
    assert_true(json_is_object(json_object_get(object(o, 0), "rle")));
    json_decref(o);
    child_finish(&c);
}

/* Found before anything is asked. */
static void test_refused(void **state)
{
    static const struct {
        const char *args[10];
        int exit;
        const char *why;
    } cases[] = {
        {{"run", "--image", SCENE, "-o", "%s/no/out.png", "x"}, 1, "/no/out.png: No such file"},
        {{"run", "--image", SCENE, "-o", "%s", "x"}, 1, ": Is a directory"},
        {{"run", "--image", SCENE, "-o", "%s/out.jpg", "x"}, 1, "written as PNG; call it"},
        {{"run", "--image", SCENE, "-o", "-", "x"}, 1, "standard output is for the answer"},
        {{"run", "--image", "%s/copy.png", "-o", "%s/link.png", "x"}, 1, "that is the picture itself"},
        {{"run", "--image", SCENE, "-o", "%s/\xff.png", "x"}, 1, "not UTF-8"},
        {{"run", "-o", "%s/out.png", "x"}, 2, "-o: there is no picture"},
        {{"run", "--show", "x"}, 2, "--show: there is no picture"},
        {{"run", "--masks", "%s/masks", "x"}, 2, "--masks: there is no picture"},
        {{"run", "--image", SCENE, "--masks", SCENE, "x"}, 1, "not a folder"},
        {{"run", "--image", SCENE, "--masks", "%s/no/masks", "x"}, 1, "--masks "},
        {{"run", "--image", SCENE, "--mask-codec", "%s/none.npz", "x"}, 1, "--mask-codec: "},
        {{"run", "--image", SCENE, "--mask-codec", TINY "/config.json", "x"}, 1, "config.json"},
        {{"chat", "--image", SCENE, "--mask-codec", "%s/none.npz"}, 1, "none.npz"},
    };
    struct fake *f = *state;
    char command[256];

    snprintf(command, sizeof command, "cp %s %s/copy.png && ln -s copy.png %s/link.png", SCENE, f->dir,
             f->dir);
    assert_int_equal(system(command), 0);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct child c;

        run(f, &c, false, cases[i].args);
        child_expect(&c, cases[i].why, cases[i].exit, cases[i].why, NULL);
        assert_string_equal(OUT(&c), "");
        child_finish(&c);
    }
    assert_int_equal(f->n_asked, 0);
    snprintf(command, sizeof command, "cmp -s %s %s/copy.png", SCENE, f->dir);
    assert_int_equal(system(command), 0);
    snprintf(command, sizeof command, "%s/out.png", f->dir);
    assert_int_equal(access(command, F_OK), -1);
}

/* A disk that is full in the end: the answer is told all the same. */
static void test_full_disk(void **state)
{
    struct fake *f = *state;
    struct child c;
    json_t *o;

    run(f, &c, false, (const char *[]){"run", "--image", SCENE, "-o", "/dev/full", FOUND, NULL});
    child_expect(&c, "full", 1, "/dev/full: No space left", NULL);
    assert_string_equal(OUT(&c), FOUND "\n");
    child_finish(&c);
    run(f, &c, false, (const char *[]){"run", "--image", SCENE, "--json", "-o", "/dev/full", FOUND, NULL});
    child_expect(&c, "full", 1, "/dev/full: No space left", NULL);
    o = child_json(&c);
    assert_int_equal(json_array_size(json_object_get(o, "objects")), 2);
    json_decref(o);
    child_finish(&c);
}

static void test_plain(void **state)
{
    struct fake *f = *state;
    struct child c;

    /* nobody looks: text alone, and what is malformed */
    run(f, &c, false, (const char *[]){"run", "--image", SCENE, FOUND " ; <loc0007> bird", NULL});
    child_expect(&c, "plain", 0, "no object at byte ", NULL);
    assert_string_equal(OUT(&c), FOUND " ; <loc0007> bird\n");
    assert_null(strstr(ERR(&c), "cat"));
    child_finish(&c);

    run(f, &c, false,
        (const char *[]){"run", "--image", SCENE, "--image", OTHER, "-v", "--mask-codec", CODEC, SEGMENTED,
                         NULL});
    child_expect(&c, "verbose", 0, "cat                  y 24.2 to 72.8, x 16.6 to 66.5, mask of ", NULL);
    child_expect(&c, "verbose", 0, "black dog            y 0.0 to 48.5, x 66.5 to 132.9, score ", NULL);
    child_expect(&c, "verbose", 0, "of the first picture, " SCENE, NULL);
    assert_string_equal(OUT(&c), SEGMENTED "\n");
    child_finish(&c);

    run(f, &c, false, (const char *[]){"run", "--image", SCENE, "-v", "a cat ; on a mat", NULL});
    child_expect(&c, "nothing found", 0, NULL, "a cat ; on a mat\n");
    assert_null(strstr(ERR(&c), "first picture"));
    child_finish(&c);
}

static void test_show(void **state)
{
    struct fake *f = *state;
    struct child c;

    run(f, &c, false, (const char *[]){"run", "--image", SCENE, "--show", FOUND, NULL});
    child_expect(&c, "no terminal", 0, "--show: there is no terminal", NULL);
    assert_string_equal(OUT(&c), FOUND "\n");
    child_finish(&c);

    run(f, &c, true, (const char *[]){"run", "--image", SCENE, "--show", FOUND, NULL});
    child_expect(&c, "terminal", 0, "black dog            y 0.0", NULL);
    assert_non_null(strstr(ERR(&c), "\033[38;")); /* an xterm's colours */
    child_finish(&c);

    /* what is said stands behind the answer's line, which comes piece by piece */
    run(f, &c, true, (const char *[]){"run", "--image", SCENE, "-o", "%s/out.png", FOUND, NULL});
    child_expect(&c, "terminal", 0, FOUND "\r\n", NULL);
    assert_non_null(strstr(strstr(ERR(&c), FOUND "\r\n"), "/out.png: 2 objects drawn"));
    child_expect(&c, "terminal", 0, "black dog            y 0.0", NULL);
    assert_null(strstr(ERR(&c), "\033[38;"));
    child_finish(&c);
}

/* ---- chat ---- */

static void chat(struct fake *f, struct child *c, const char *lines, const char *more)
{
    const char *args[] = {"chat", "--connect", f->endpoint, "--mask-codec", CODEC, more, NULL};
    char path[64];
    FILE *file;

    snprintf(path, sizeof path, "%s/lines", f->dir);
    file = fopen(path, "w");
    assert_non_null(file);
    fputs(lines, file);
    assert_int_equal(fclose(file), 0);
    f->script.heard = heard;
    child_start(c, ESPALIER, path, args);
    child_wait(c, &f->script);
}

static void test_chat(void **state)
{
    struct fake *f = *state;
    char lines[1024], path[64];
    struct child c;

    snprintf(lines, sizeof lines,
             "/save %s/early.png\n"
             "/image " SCENE "\n" SEGMENTED " ; <loc0001> bird\n"
             "/save %s/out.png\n"
             "/save %s/no/out.png\n/save " SCENE "\n/save\n/save a b\n/show\n/show x\n"
             "/image " OTHER "\n"
             "/save %s/other.png\n",
             f->dir, f->dir, f->dir, f->dir);
    chat(f, &c, lines, "-v");
    child_expect(&c, "chat", 1, "no object at byte ", SEGMENTED);
    child_expect(&c, "chat", 1, "no picture: /image FILE", NULL);
    child_expect(&c, "chat", 1, "cat                  y 24.2 to 72.8, x 16.6 to 66.5, mask of ", NULL);
    child_expect(&c, "chat", 1, "/out.png: 2 objects drawn", NULL);
    child_expect(&c, "chat", 1, "/no/out.png: No such file", NULL);
    child_expect(&c, "chat", 1, SCENE ": that is the picture itself", NULL);
    child_expect(&c, "chat", 1, "/save FILE.png: where?", NULL);
    child_expect(&c, "chat", 1, "/save FILE.png: one file", NULL);
    child_expect(&c, "chat", 1, "there is no terminal to show the picture on", NULL);
    child_expect(&c, "chat", 1, "/show takes nothing behind it", NULL);
    child_expect(&c, "chat", 1, "/other.png: 0 objects drawn", NULL);
    child_finish(&c);
    snprintf(path, sizeof path, "%s/out.png", f->dir);
    expect_drawn(path);
    snprintf(path, sizeof path, "%s/out.mask-0.png", f->dir);
    assert_int_equal(access(path, R_OK), 0);
    snprintf(path, sizeof path, "%s/other.mask-0.png", f->dir);
    assert_int_equal(access(path, F_OK), -1);

    chat(f, &c, "/image " SCENE "\n" FOUND "\n" FOUND "\n/quit\n", "--show");
    child_expect(&c, "chat --show", 0, "--show: there is no terminal", FOUND);
    assert_null(strstr(strstr(ERR(&c), "--show: ") + 1, "--show: ")); /* once */
    child_finish(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_boxes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_less_is_known, setup, teardown),
        cmocka_unit_test_setup_teardown(test_masks_and_output, setup, teardown),
        cmocka_unit_test_setup_teardown(test_where_the_codec_is, setup, teardown),
        cmocka_unit_test_setup_teardown(test_installed_codec, setup, teardown),
        cmocka_unit_test_setup_teardown(test_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_full_disk, setup, teardown),
        cmocka_unit_test_setup_teardown(test_plain, setup, teardown),
        cmocka_unit_test_setup_teardown(test_show, setup, teardown),
        cmocka_unit_test_setup_teardown(test_chat, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
