/* Where an answer's boxes and masks go, and the mask codec: findings.h. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/ask.h"
#include "cli/finder.h"
#include "cli/findings.h"
#include "cli/input.h"
#include "model/file.h"

void esp_findings_args(struct esp_finder *finder, struct esp_arg args[ESP_N_FINDINGS_ARGS])
{
    const struct esp_arg table[ESP_N_FINDINGS_ARGS] = {
        {"show", 0, ESP_ARG_FLAG, NULL,
         "Show the first picture in the terminal, with what the answer found on it.", &finder->show, 0, 0,
         false, NULL},
        {"mask-codec", 0, ESP_ARG_TEXT, "FILE",
         "What makes masks of <seg...> tokens, a " ESP_CODEC_FILE
         ". Default: that of the model's folder, else that of what is installed.",
         &finder->codec_path, 0, 0, false, NULL},
    };
    memcpy(args, table, sizeof table);
}

void esp_findings_file_args(struct esp_finder *finder, struct esp_arg args[ESP_N_FINDINGS_FILE_ARGS])
{
    const struct esp_arg table[ESP_N_FINDINGS_FILE_ARGS] = {
        {"output", 'o', ESP_ARG_TEXT, "FILE.png",
         "Draw the boxes, labels and masks of the answer on the first picture and write it here.",
         &finder->output, 0, 0, false, NULL},
        {"masks", 0, ESP_ARG_TEXT, "DIR",
         "Write each mask there, as mask-0.png and so on. Default: beside the output, FILE.mask-0.png.",
         &finder->masks, 0, 0, false, NULL},
    };
    memcpy(args, table, sizeof table);
}

/* ---- before anything is computed ---- */

/* What is written is a PNG; a name that says otherwise is a slip. */
static esp_status check_name(const char *path, struct esp_err *err)
{
    static const char *const others[] = {".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".avif"};
    const char *dot = strrchr(path, '.');

    if (strcmp(path, "-") == 0)
        return esp_fail(err, ESP_E_ARG, "-: standard output is for the answer; name a file");
    if (!esp_input_is_utf8(path, strlen(path)))
        return esp_fail(err, ESP_E_ARG, "the name of the file to write is not UTF-8");
    for (size_t i = 0; dot && i < sizeof others / sizeof others[0]; i++)
        if (strcasecmp(dot, others[i]) == 0)
            return esp_fail(err, ESP_E_ARG, "%s: pictures are written as PNG; call it %.*s.png", path,
                            (int)(dot - path), path);
    return ESP_OK;
}

static esp_status check_not_input(const char *path, const struct esp_texts *images, struct esp_err *err)
{
    struct stat output, input;

    if (stat(path, &output) != 0)
        return ESP_OK;
    for (uint32_t i = 0; i < images->n; i++)
        if (strcmp(images->at[i], "-") != 0 && stat(images->at[i], &input) == 0 &&
            input.st_dev == output.st_dev && input.st_ino == output.st_ino)
            return esp_fail(err, ESP_E_ARG, "%s: that is the picture itself", path);
    return ESP_OK;
}

static esp_status check_masks(const char *dir, struct esp_err *err)
{
    struct stat info;

    if (!esp_input_is_utf8(dir, strlen(dir)))
        return esp_fail(err, ESP_E_ARG, "--masks: the folder's name is not UTF-8");
    if (mkdir(dir, 0777) != 0 && errno != EEXIST)
        return esp_fail(err, ESP_E_IO, "--masks %s: %s", dir, strerror(errno));
    if (stat(dir, &info) != 0)
        return esp_fail(err, ESP_E_IO, "--masks %s: %s", dir, strerror(errno));
    if (!S_ISDIR(info.st_mode))
        return esp_fail(err, ESP_E_IO, "--masks %s: not a folder", dir);
    if (access(dir, W_OK | X_OK) != 0)
        return esp_fail(err, ESP_E_IO, "--masks %s: %s", dir, strerror(errno));
    return ESP_OK;
}

esp_status esp_findings_check_output(const char *path, const struct esp_texts *images, struct esp_err *err)
{
    esp_status st = check_name(path, err);

    if (st == ESP_OK)
        st = check_not_input(path, images, err);
    return st ? st : esp_ask_check_writable(path, err);
}

esp_status esp_finder_open(struct esp_finder *finder, const struct esp_texts *images, struct esp_err *err)
{
    esp_status st = ESP_OK;

    if (finder->output)
        st = esp_findings_check_output(finder->output, images, err);
    if (st == ESP_OK && finder->masks)
        st = check_masks(finder->masks, err);
    if (st == ESP_OK && finder->codec_path) {
        finder->looked = true;
        st = esp_codec_open(&finder->codec, finder->codec_path, err);
        if (st)
            esp_err_prefix(err, "--mask-codec: ");
    }
    return st;
}

void esp_finder_close(struct esp_finder *finder)
{
    esp_codec_destroy(&finder->codec);
    finder->looked = false;
}

/* ---- the codec ---- */

/* DIRECTORY OF THIS PROGRAM/../share/espalier/vae-oid.npz: where `make install` has its data, wherever that is. */
static bool installed(char *out, size_t n_out)
{
    ssize_t n = readlink("/proc/self/exe", out, n_out);
    int w;

    while (n > 0 && out[n - 1] != '/')
        n--;
    if (n <= 0 || (size_t)n >= n_out)
        return false;
    w = snprintf(out + n, n_out - (size_t)n, "../share/espalier/%s", ESP_CODEC_FILE);
    return w > 0 && (size_t)w < n_out - (size_t)n && esp_file_exists(out);
}

bool esp_finder_codec_path(char *out, size_t n_out, const char *model)
{
    int w = model ? snprintf(out, n_out, "%s/%s", model, ESP_CODEC_FILE) : -1;

    return (w >= 0 && (size_t)w < n_out && esp_file_exists(out)) || installed(out, n_out);
}

const struct esp_codec *esp_finder_codec(struct esp_finder *finder, struct esp_term *term)
{
    struct esp_err err;
    char path[4096];

    if (finder->looked)
        return finder->codec;
    finder->looked = true;
    if (!esp_finder_codec_path(path, sizeof path, finder->model))
        esp_term_line(
            term,
            "The answer has masks as <seg...> tokens, and there is no " ESP_CODEC_FILE
            " to make pictures of them: put the one that the model was trained with into its folder, or name "
            "it with --mask-codec. For Google's checkpoints it is "
            "https://storage.googleapis.com/big_vision/paligemma/vae-oid.npz.");
    else if (esp_codec_open(&finder->codec, path, &err))
        esp_term_line(term, "The answer's masks are left out: %s", err.text);
    return finder->codec;
}
