/*
 * espalier-scenes: draws scenes, with questions and their right answers. Nothing of Espalier needs it but the small
 * model's training, its measurement and the demo.
 */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "objects/codec.h"
#include "objects/rle.h"
#include "picture/image.h"
#include "picture/png_write.h"
#include "tools/scenes/jpeg.h"
#include "tools/scenes/record.h"

static const char usage[] =
    "Usage: espalier-scenes --out DIR [--seed N] [--first N] [--count N]\n"
    "       espalier-scenes --stream [--side N] [--seed N] [--first N] [--count N]\n"
    "       espalier-scenes --names\n"
    "\n"
    "Draws scenes of simple shapes and printed words, and asks about each what models/tiny can answer.\n"
    "\n"
    "  --out DIR     writes pictures into DIR (made if need be) and the questions, with the right answers, "
    "one\n"
    "                JSON object a line, into DIR/scenes.jsonl\n"
    "  --stream      writes binary training records to standard output (tools/scenes/record.h)\n"
    "  --names       prints what shapes, colours, patterns and sizes there are, as JSON\n"
    "  --seed N      the set: the same number gives the same scenes (0)\n"
    "  --first N     the first scene of the set (0)\n"
    "  --count N     how many scenes (10; with --stream endless)\n"
    "  --side N      of a record's picture, pixels (112)\n"
    "  --mask-codec FILE  with --out: write the tokens of masks into answers to segment, by this codec's "
    "encoder\n"
    "                (vae-oid.npz); without, such answers hold boxes and labels alone\n"
    "  --per-scene N at most so many questions a scene, taken at random (all)\n"
    "  --help        this\n";

struct options {
    const char *dir, *codec;
    bool stream, names;
    uint64_t seed, first, count;
    uint32_t side, per_scene;
};

struct job {
    const struct options *options;
    FILE *lines;             /* scenes.jsonl */
    struct esp_codec *codec; /* NULL: answers go without the tokens of masks */
    struct esp_scene scene;
    struct esp_drawing drawing;
    struct esp_asked asked[ESP_MAX_ASKED];
    uint32_t n_asked;
    uint8_t *jpeg; /* NULL: the scene is kept as a PNG */
    size_t n_jpeg;
};

/* ---- one scene ---- */

/* Keeps only so many questions, each as likely to stay. */
static void thin(struct job *job)
{
    while (job->options->per_scene && job->n_asked > job->options->per_scene) {
        uint32_t i = esp_rand_below(&job->scene.rand, job->n_asked);

        memmove(&job->asked[i], &job->asked[i + 1], (job->n_asked - i - 1) * sizeof *job->asked);
        job->n_asked--;
    }
}

static esp_status make(struct job *job, uint64_t index, struct esp_err *err)
{
    esp_status st = esp_scene_draw(&job->scene, &job->drawing, job->options->seed, index, err);
    const struct esp_drawing *d = &job->drawing;

    if (st)
        return st;
    if (job->scene.jpeg_quality)
        st = esp_jpeg_encode(&job->jpeg, &job->n_jpeg, d->rgb, d->width, d->height, job->scene.jpeg_quality,
                             err);
    job->n_asked = esp_ask_about(job->asked, &job->scene, d);
    thin(job);
    return st;
}

static void finish(struct job *job)
{
    esp_drawing_finish(&job->drawing);
    free(job->jpeg);
    job->jpeg = NULL;
}

/* ---- as records ---- */

static esp_status write_record(struct job *job, struct esp_err *err)
{
    struct esp_image decoded = {0};
    uint8_t *record = NULL;
    size_t n = 0;
    esp_status st = job->jpeg ? esp_image_decode(&decoded, job->jpeg, job->n_jpeg, NULL, err) : ESP_OK;

    if (st == ESP_OK)
        st = esp_record_make(&record, &n, &job->scene, &job->drawing,
                             job->jpeg ? decoded.rgb : job->drawing.rgb, job->asked, job->n_asked,
                             job->options->side, err);
    if (st == ESP_OK && fwrite(record, 1, n, stdout) != n)
        st = esp_fail(err, ESP_E_IO, "standard output: %s", strerror(errno));
    free(record);
    esp_image_finish(&decoded);
    return st;
}

/* ---- as files ---- */

/* An object's mask in COCO's run-length form. */
static esp_status print_mask(FILE *f, const struct esp_drawing *d, uint32_t i, struct esp_err *err)
{
    const size_t n_pixels = (size_t)d->width * d->height;
    uint8_t *mask = malloc(n_pixels);
    struct esp_rle rle = {0};
    esp_status st;

    if (!mask)
        return esp_fail(err, ESP_E_NOMEM, "a mask of %u x %u", d->width, d->height);
    for (size_t p = 0; p < n_pixels; p++)
        mask[p] = d->owner[p] == i + 1;
    st = esp_rle_encode(&rle, mask, d->height, d->width, err);
    fprintf(f, ", \"mask\": {\"size\": [%u, %u], \"counts\": [", d->height, d->width);
    for (size_t k = 0; k < rle.n_counts; k++)
        fprintf(f, "%s%u", k ? ", " : "", rle.counts[k]);
    fputs("]}", f);
    esp_rle_finish(&rle);
    free(mask);
    return st;
}

/* The sixteen tokens of object i's mask. */
static esp_status print_codes(FILE *f, const struct job *job, uint32_t i, struct esp_err *err)
{
    static uint8_t mask[ESP_RECORD_MASK_SIDE * ESP_RECORD_MASK_SIDE];
    int32_t codes[ESP_CODEC_N_TOK];
    esp_status st;

    esp_record_mask(mask, &job->drawing, i);
    st = esp_codec_encode(codes, job->codec, mask, err);
    for (int k = 0; st == ESP_OK && k < ESP_CODEC_N_TOK; k++)
        fprintf(f, "<seg%03d>", (int)codes[k]);
    return st;
}

/* All our texts are plain ASCII without quotes. */
static esp_status print_answer(FILE *f, const struct job *job, const char *answer, struct esp_err *err)
{
    esp_status st = ESP_OK;

    for (const char *c = answer; *c && st == ESP_OK;) {
        uint32_t i;

        if (sscanf(c, "<seg@%u>", &i) == 1) {
            if (job->codec)
                st = print_codes(f, job, i, err);
            c = strchr(c, '>') + 1;
        } else {
            fputc(*c++, f);
        }
    }
    return st;
}

static esp_status print_asked(FILE *f, const char *picture, const struct job *job,
                              const struct esp_asked *asked, struct esp_err *err)
{
    const struct esp_drawing *d = &job->drawing;
    esp_status st;

    fprintf(f, "{\"image\": \"%s\", \"prompt\": \"%s\", \"answer\": \"", picture, asked->prompt);
    st = print_answer(f, job, asked->answer, err);
    fputc('"', f);
    if (asked->task == ESP_TASK_DETECT || asked->task == ESP_TASK_SEGMENT) {
        fprintf(f, ", \"objects\": [");
        for (uint32_t i = 0; st == ESP_OK && i < asked->n_listed; i++) {
            const float *box = d->box[asked->listed[i].object];

            fprintf(f, "%s{\"label\": \"%s\", \"box\": [%.0f, %.0f, %.0f, %.0f]", i ? ", " : "",
                    asked->listed[i].label, (double)box[0], (double)box[1], (double)box[2], (double)box[3]);
            if (asked->task == ESP_TASK_SEGMENT)
                st = print_mask(f, d, asked->listed[i].object, err);
            fputc('}', f);
        }
        fputc(']', f);
    }
    fputs("}\n", f);
    return st;
}

static esp_status write_file(const char *path, const void *bytes, size_t n, struct esp_err *err)
{
    FILE *f = fopen(path, "wb");
    bool good = f && fwrite(bytes, 1, n, f) == n;

    if (f && fclose(f))
        good = false;
    return good ? ESP_OK : esp_fail(err, ESP_E_IO, "%s: %s", path, strerror(errno));
}

static esp_status write_files(struct job *job, struct esp_err *err)
{
    const struct esp_drawing *d = &job->drawing;
    char name[64], path[4096];
    esp_status st;

    snprintf(name, sizeof name, "scene-%06llu.%s", (unsigned long long)job->scene.index,
             job->jpeg ? "jpg" : "png");
    if ((size_t)snprintf(path, sizeof path, "%s/%s", job->options->dir, name) >= sizeof path)
        return esp_fail(err, ESP_E_ARG, "--out: too long a path");
    st = job->jpeg ? write_file(path, job->jpeg, job->n_jpeg, err)
                   : esp_png_write(path, d->rgb, d->width, d->height, 3, err);
    for (uint32_t i = 0; st == ESP_OK && i < job->n_asked; i++)
        st = print_asked(job->lines, name, job, &job->asked[i], err);
    return st;
}

/* ---- all ---- */

static esp_status open_lines(struct job *job, struct esp_err *err)
{
    char path[4096];

    if (mkdir(job->options->dir, 0777) && errno != EEXIST)
        return esp_fail(err, ESP_E_IO, "--out %s: %s", job->options->dir, strerror(errno));
    if ((size_t)snprintf(path, sizeof path, "%s/scenes.jsonl", job->options->dir) >= sizeof path)
        return esp_fail(err, ESP_E_ARG, "--out: too long a path");
    job->lines = fopen(path, "w");
    return job->lines ? ESP_OK : esp_fail(err, ESP_E_IO, "%s: %s", path, strerror(errno));
}

static esp_status draw_all(const struct options *options, struct esp_err *err)
{
    static struct job job;
    esp_status st;

    job.options = options;
    st = options->codec ? esp_codec_open(&job.codec, options->codec, err) : ESP_OK;
    if (st == ESP_OK && job.codec && !esp_codec_can_encode(job.codec))
        st = esp_fail(err, ESP_E_UNSUPPORTED, "--mask-codec %s: it has no encoder, only a decoder",
                      options->codec);
    if (st == ESP_OK && options->dir)
        st = open_lines(&job, err);
    for (uint64_t i = 0; st == ESP_OK && (i < options->count || options->count == 0); i++) {
        st = make(&job, options->first + i, err);
        if (st == ESP_OK)
            st = options->stream ? write_record(&job, err) : write_files(&job, err);
        finish(&job);
    }
    esp_codec_destroy(&job.codec);
    if (job.lines) {
        bool good = !ferror(job.lines);

        good = fclose(job.lines) == 0 && good;
        if (!good && st == ESP_OK)
            st = esp_fail(err, ESP_E_IO, "%s/scenes.jsonl: cannot be written", options->dir);
    }
    if (fflush(stdout) && st == ESP_OK)
        st = esp_fail(err, ESP_E_IO, "standard output: %s", strerror(errno));
    return st;
}

static void print_names(const char *what, const char *const *names, int n, const char *end)
{
    printf("%s: [", what);
    for (int i = 0; i < n; i++)
        printf("%s\"%s\"", i ? ", " : "", names[i]);
    printf("]%s", end);
}

static bool number(uint64_t *out, const char *text, uint64_t max)
{
    char *end;

    errno = 0;
    *out = strtoull(text, &end, 10);
    return text[0] >= '0' && text[0] <= '9' && !*end && !errno && *out <= max;
}

/* Reads the command line; false with a message if it makes no sense. */
static bool read_options(struct options *o, int argc, char **argv)
{
    static const struct option known[] = {{"out", required_argument, NULL, 'o'},
                                          {"stream", no_argument, NULL, 't'},
                                          {"names", no_argument, NULL, 'n'},
                                          {"seed", required_argument, NULL, 's'},
                                          {"first", required_argument, NULL, 'f'},
                                          {"count", required_argument, NULL, 'c'},
                                          {"side", required_argument, NULL, 'i'},
                                          {"per-scene", required_argument, NULL, 'p'},
                                          {"mask-codec", required_argument, NULL, 'm'},
                                          {"help", no_argument, NULL, 'h'},
                                          {NULL, 0, NULL, 0}};
    bool good = true, counted = false;
    int c, at = 0;

    while ((c = getopt_long(argc, argv, "", known, &at)) != -1) {
        uint64_t n = 0;

        if (c == '?')
            return false;
        if (c == 'h') {
            fputs(usage, stdout);
            exit(0);
        }
        if (c == 'o')
            o->dir = optarg;
        else if (c == 'm')
            o->codec = optarg;
        else if (c == 't')
            o->stream = true;
        else if (c == 'n')
            o->names = true;
        else if (!number(&n, optarg, c == 'i' ? 4096 : UINT64_MAX >> 1) || (c == 'i' && n == 0) ||
                 (c == 'p' && n == 0))
            good = false;
        if (!good) {
            fprintf(stderr, "espalier-scenes: --%s %s: not a number that makes sense here\n", known[at].name,
                    optarg);
            return false;
        }
        switch (c) {
        case 's':
            o->seed = n;
            break;
        case 'f':
            o->first = n;
            break;
        case 'c':
            o->count = n;
            counted = true;
            break;
        case 'i':
            o->side = (uint32_t)n;
            break;
        case 'p':
            o->per_scene = (uint32_t)(n < ESP_MAX_ASKED ? n : ESP_MAX_ASKED);
            break;
        default:
            break;
        }
    }
    if (optind < argc || (o->dir != NULL) + o->stream + o->names != 1) {
        fprintf(
            stderr,
            "espalier-scenes: one of --out DIR, --stream and --names, and nothing else; --help says more\n");
        return false;
    }
    if (o->codec && !o->dir) {
        fprintf(stderr, "espalier-scenes: --mask-codec goes with --out only\n");
        return false;
    }
    if (o->dir && !counted)
        o->count = 10;
    if (o->dir && o->count == 0) {
        fprintf(stderr, "espalier-scenes: --count 0 (endless) goes with --stream only\n");
        return false;
    }
    return true;
}

int main(int argc, char **argv)
{
    struct options options = {.side = 112};
    struct esp_err err = {0};

    if (!read_options(&options, argc, argv))
        return 2;
    if (options.names) {
        print_names("{\"shapes\"", esp_scene_shapes, ESP_SCENE_N_SHAPES, ",\n");
        print_names(" \"colours\"", esp_scene_colours, ESP_SCENE_N_COLOURS, ",\n");
        print_names(" \"patterns\"", esp_scene_patterns, ESP_SCENE_N_PATTERNS, ",\n");
        print_names(" \"sizes\"", esp_scene_sizes, ESP_SCENE_N_SIZES, "}\n");
        return 0;
    }
    if (draw_all(&options, &err)) {
        fprintf(stderr, "espalier-scenes: %s\n", err.text);
        return 1;
    }
    return 0;
}
