/* What the answers of a chat find on the first picture. */
#include <stdio.h>
#include <string.h>

#include "cli/chat.h"
#include "cli/show.h"

/* The first picture; NULL: none. */
static const struct esp_finding_picture *first(struct esp_finding_picture *out, const struct esp_chat *chat)
{
    const struct esp_chat_picture *p = &chat->picture[0];

    if (chat->n_pictures == 0)
        return NULL;
    *out = (struct esp_finding_picture){p->bytes, p->n_bytes, p->path};
    return out;
}

esp_status esp_chat_show(struct esp_chat *chat, struct esp_err *err)
{
    struct esp_finding_picture buffer;
    const struct esp_finding_picture *picture = first(&buffer, chat);
    struct esp_image image;
    esp_status st;

    if (!picture)
        return esp_fail(err, ESP_E_ARG, "no picture: /image FILE");
    st = esp_findings_draw(&image, &chat->found, picture, err);
    if (st)
        return st;
    esp_term_clear(&chat->ask.term);
    st = esp_show(stdout, &image, err);
    esp_image_finish(&image);
    return st;
}

esp_status esp_chat_save(struct esp_chat *chat, const char *path, struct esp_err *err)
{
    struct esp_finding_picture buffer;
    const struct esp_finding_picture *picture = first(&buffer, chat);
    char *paths[ESP_MAX_BLOBS];
    const struct esp_texts images = {.at = paths, .n = chat->n_pictures};
    esp_status st;

    if (!picture)
        return esp_fail(err, ESP_E_ARG, "no picture: /image FILE");
    for (uint32_t i = 0; i < chat->n_pictures; i++)
        paths[i] = chat->picture[i].path;
    st = esp_findings_check_output(path, &images, err);
    return st ? st : esp_findings_save(&chat->found, picture, NULL, path, &chat->ask.term, err);
}

esp_status esp_chat_take_findings(struct esp_chat *chat, const char *text, struct esp_err *err)
{
    struct esp_finding_picture buffer;
    struct esp_term *term = &chat->ask.term;
    esp_status st;

    esp_findings_finish(&chat->found);
    st = esp_findings_read(&chat->found, &chat->finder, term, chat->decoding.suffix, text, &chat->scores,
                           first(&buffer, chat), err);
    if (st)
        return st;
    esp_findings_tell_malformed(&chat->found, term);
    if (term->progress || chat->ask.verbose) {
        esp_findings_tell(&chat->found, term);
        if (chat->found.said.n_objects > 0 && chat->n_pictures > 1)
            esp_term_line(term, "taken to be of the first picture, %s", chat->picture[0].path);
    }
    if (!chat->finder.show || chat->found.said.n_objects == 0)
        return ESP_OK;
    st = esp_chat_show(chat, err);
    if (st == ESP_E_UNSUPPORTED) {
        esp_term_line(term, "--show: %s", err->text);
        chat->finder.show = false; /* said once */
        st = ESP_OK;
    }
    return st;
}
