/**
 * What an answer finds in the picture, made use of: boxes in pixels, masks, files, a table.
 *
 * All of it is about the first picture, since nothing in an answer says of which one it speaks.
 */
#ifndef ESP_CLI_FINDINGS_H
#define ESP_CLI_FINDINGS_H

#include "cli/args.h"
#include "cli/term.h"
#include "objects/codec.h"
#include "objects/parse.h"
#include "objects/rle.h"
#include "picture/image.h"
#include "proto/status.h"

#define ESP_N_FINDINGS_ARGS      2
#define ESP_N_FINDINGS_FILE_ARGS 2
#define ESP_CODEC_FILE           "vae-oid.npz"

/** The options, and the mask codec once it was needed. Zero it first, and esp_finder_close it. */
struct esp_finder {
    const char *output, *masks, *codec_path; /* -o, --masks, --mask-codec */
    bool show;
    const char *model; /* directory where a codec may lie; NULL: none is known */
    struct esp_codec *codec;
    bool looked; /* for a codec, whether or not there was one */
};

/** Options: how something is found and shown, and the files of a single answer. */
void esp_findings_args(struct esp_finder *finder, struct esp_arg args[ESP_N_FINDINGS_ARGS]);
void esp_findings_file_args(struct esp_finder *finder, struct esp_arg args[ESP_N_FINDINGS_FILE_ARGS]);

/**
 * What can be wrong with the options, found before anything is computed for them: files that cannot be written or that
 * are the pictures themselves, a codec that is none. Makes the folder of --masks.
 * @param images  the pictures' paths
 * Errors: ESP_E_ARG, ESP_E_IO; as esp_codec_open.
 */
esp_status esp_finder_open(struct esp_finder *finder, const struct esp_texts *images, struct esp_err *err);
void esp_finder_close(struct esp_finder *finder);

/** The part of it about a picture that is to be written. */
esp_status esp_findings_check_output(const char *path, const struct esp_texts *images, struct esp_err *err);

/** Log-probabilities of the <loc> tokens of an answer that comes token by token. Zero it before each answer. */
struct esp_loc_scores {
    size_t n_bytes; /* of the text so far */
    size_t n, n_room;
    struct esp_loc_score {
        size_t at; /* of the text, bytes */
        double logprob;
    } * loc;
};

/** A token's text and the natural log of its probability. ESP_E_NOMEM. */
esp_status esp_loc_scores_add(struct esp_loc_scores *scores, const char *text, double logprob,
                              struct esp_err *err);
void esp_loc_scores_finish(struct esp_loc_scores *scores);

/** A picture's file, borrowed. */
struct esp_finding_picture {
    const void *bytes;
    size_t n_bytes;
    const char *name; /* for messages */
};

struct esp_finding {
    double box[4];       /* y0, x0, y1, x1 in pixels; zeros where there is no picture */
    double score;        /* mean probability of its four <loc> tokens; NAN: not known */
    struct esp_rle mask; /* counts NULL: none */
    char *mask_file;     /* NULL: none was written */
};

struct esp_findings {
    struct esp_objects said;
    struct esp_finding *object; /* one for each of said.object */
    uint32_t height, width;     /* of the picture; 0: there is none */
};

/**
 * Takes an answer apart. Masks need a codec: the given one, or the file vae-oid.npz beside the model or among what is
 * installed; what keeps them from being made is said on stderr, once, and they are left out.
 *
 * @param out      the caller's; filled on success (release with esp_findings_finish), zeroed on failure
 * @param suffix   the answer's beginning, where it was given and is not in the text; may be NULL. What is told of places
 *                 counts from it
 * @param text     the answer, borrowed
 * @param scores   of the same answer; NULL, or of another length than the text: not known
 * @param picture  the first one; NULL: none
 * Errors: ESP_E_NOMEM; as esp_image_size.
 */
esp_status esp_findings_read(struct esp_findings *out, struct esp_finder *finder, struct esp_term *term,
                             const char *suffix, const char *text, const struct esp_loc_scores *scores,
                             const struct esp_finding_picture *picture, struct esp_err *err);
void esp_findings_finish(struct esp_findings *found);

/**
 * Writes each mask as a PNG, 255 inside and 0 outside: DIR/mask-0.png and so on, numbered as the objects; without DIR
 * beside the output, out.mask-0.png for out.png. With neither nothing is written.
 * Errors: ESP_E_IO, ESP_E_NOMEM; those written before it stay.
 */
esp_status esp_findings_write_masks(struct esp_findings *found, const char *dir, const char *output,
                                    struct esp_err *err);

/**
 * The picture with everything drawn on it; as it is where nothing was found.
 * @param out  esp_image_finish it
 * Errors: as esp_image_decode, with the picture's name; ESP_E_ARG (no picture).
 */
esp_status esp_findings_draw(struct esp_image *out, const struct esp_findings *found,
                             const struct esp_finding_picture *picture, struct esp_err *err);

/** The masks, and esp_findings_draw into a PNG file; with a terminal says so on stderr. @param masks, output, term  may be NULL */
esp_status esp_findings_save(struct esp_findings *found, const struct esp_finding_picture *picture,
                             const char *masks, const char *output, struct esp_term *term,
                             struct esp_err *err);

/** A line an object on stderr; none where there is no picture. */
void esp_findings_tell(const struct esp_findings *found, struct esp_term *term);

/** A line on stderr for each thing that looked like an object and is none. */
void esp_findings_tell_malformed(const struct esp_findings *found, struct esp_term *term);

#endif
