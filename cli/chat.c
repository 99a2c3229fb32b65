#include "cli/chat.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/command.h"
#include "cli/input.h"
#include "cli/signals.h"

static const struct esp_command_help help = {
    .name = "chat",
    .synopsis = "--model DIR [--image FILE] [options]",
    .about =
        "Answers questions about pictures, one after the other, over one cluster that stays up meanwhile. A "
        "line is a\n"
        "prompt about the present pictures, as for run; a line that begins with a slash is a command: /image "
        "FILE,\n"
        "/detect THINGS, /set temperature 0.7, ... and /help, which lists them all. Ctrl-C ends an answer, "
        "Ctrl-D the\n"
        "session. From a pipe or file it answers line by line; then the exit status is 1 if anything "
        "failed.\n",
    .examples = "  espalier chat --model paligemma-3b-mix-224 --image cat.jpg\n"
                "  espalier chat --connect tcp://10.0.0.5:5550 --keys keys\n"
                "  espalier chat -m DIR <questions.txt\n",
};

/* ---- pictures ---- */

static void free_picture(struct esp_chat_picture *p)
{
    free(p->bytes);
    free(p->path);
    free(p->name);
    memset(p, 0, sizeof *p);
}

static esp_status read_picture(struct esp_chat_picture *out, const struct esp_chat *chat, const char *path,
                               struct esp_err *err)
{
    esp_status st = esp_input_picture(&out->bytes, &out->n_bytes, path, err);

    if (st)
        return st;
    out->path = strdup(path);
    out->name = esp_input_wire_name(path, chat->ask.where.connect != NULL);
    if (out->path && out->name)
        return ESP_OK;
    free_picture(out);
    return esp_fail(err, ESP_E_NOMEM, "out of memory");
}

esp_status esp_chat_pictures(struct esp_chat *chat, char *const *paths, uint32_t n, bool add,
                             struct esp_err *err)
{
    struct esp_chat_picture fresh[ESP_MAX_BLOBS] = {{0}};
    const uint32_t n_kept = add ? chat->n_pictures : 0;
    esp_status st = ESP_OK;
    uint32_t n_read = 0;

    if (n > ESP_MAX_BLOBS - n_kept)
        return esp_fail(err, ESP_E_LIMIT, "%u pictures, at most %u in one request", n + n_kept,
                        ESP_MAX_BLOBS);
    while (st == ESP_OK && n_read < n) {
        st = read_picture(&fresh[n_read], chat, paths[n_read], err);
        n_read += st == ESP_OK;
    }
    if (st) {
        for (uint32_t i = 0; i < n_read; i++)
            free_picture(&fresh[i]);
        return st;
    }
    if (n_kept == 0)
        esp_findings_finish(&chat->found); /* that was about another picture */
    for (uint32_t i = n_kept; i < chat->n_pictures; i++)
        free_picture(&chat->picture[i]);
    for (uint32_t i = 0; i < n; i++)
        chat->picture[n_kept + i] = fresh[i];
    chat->n_pictures = n_kept + n;
    return ESP_OK;
}

/* ---- questions ---- */

static void on_accepted(void *self, const struct esp_msg_accepted *accepted)
{
    struct esp_chat *chat = self;

    if (chat->ask.verbose)
        esp_ask_tell_stages(&chat->ask, accepted);
}

static void on_waiting(void *self, const struct esp_msg_waiting *waiting)
{
    struct esp_chat *chat = self;

    if (!chat->answer.streamed)
        esp_ask_waiting(&chat->ask, waiting);
}

static esp_status on_token(void *self, const struct esp_msg_token *token, struct esp_err *err)
{
    struct esp_chat *chat = self;
    const esp_status st = esp_loc_scores_add(&chat->scores, token->text, token->logprob, err);

    return st ? st : esp_answer_token(&chat->answer, token->text, err);
}

static void keep_timing(struct esp_chat *chat, const struct esp_reply *reply)
{
    const struct esp_msg_accepted *a = &reply->accepted->accepted;
    const struct esp_msg_done *d = &reply->done->done;

    chat->last = (struct esp_chat_last){.any = true,
                                        .load = d->load,
                                        .encode = d->encode,
                                        .prefill = d->prefill,
                                        .decode = d->decode,
                                        .queue = d->queue,
                                        .n_prompt = a->n_prompt_ids + a->image_tokens,
                                        .n_tokens = d->best.n_ids + (d->best.n_logprobs > d->best.n_ids),
                                        .n_pictures = chat->n_pictures,
                                        .n_cached = d->images_cached,
                                        .n_rebuilds = d->rebuilds};
}

/* @param request  large, and therefore the caller's; filled here */
static esp_status send_question(struct esp_chat *chat, const char *prompt, struct esp_msg *request,
                                struct esp_err *err)
{
    const struct esp_client_hooks hooks = {chat, on_accepted, on_waiting, on_token};
    const char *names[ESP_MAX_BLOBS];
    struct esp_reply reply = {0};
    esp_status st;

    memset(request, 0, sizeof *request);
    request->kind = ESP_MSG_REQUEST;
    esp_decoding_fill(&request->request, &chat->decoding);
    request->request.prompt = prompt;
    request->request.n_images = request->n_blobs = chat->n_pictures;
    request->request.image_names = names;
    for (uint32_t i = 0; i < chat->n_pictures; i++) {
        names[i] = chat->picture[i].name;
        request->blob[i].data = chat->picture[i].bytes;
        request->blob[i].n_bytes = chat->picture[i].n_bytes;
    }
    st = esp_client_ask(&reply, chat->ask.client, request, &hooks, err);
    esp_term_clear(&chat->ask.term);
    if (st == ESP_OK)
        st = esp_answer_end(&chat->answer, reply.done->done.best.text, err);
    if (st == ESP_OK) {
        keep_timing(chat, &reply);
        st = esp_chat_take_findings(chat, reply.done->done.best.text, err);
        if (chat->ask.verbose)
            esp_answer_tell_timing(&chat->ask.term, &reply);
    }
    esp_reply_finish(&reply);
    return st;
}

esp_status esp_chat_ask(struct esp_chat *chat, const char *prompt, struct esp_err *err)
{
    static struct esp_msg request;
    const size_t n = strlen(prompt);
    esp_status st;

    if (n > ESP_MAX_TEXT)
        return esp_fail(err, ESP_E_LIMIT, "the prompt has more than %d bytes", ESP_MAX_TEXT);
    if (!esp_input_is_utf8(prompt, n))
        return esp_fail(err, ESP_E_ARG, "the prompt is not UTF-8");
    memset(&chat->answer, 0, sizeof chat->answer);
    chat->answer.term = &chat->ask.term;
    esp_loc_scores_finish(&chat->scores);
    st = send_question(chat, prompt, &request, err);
    if (st)
        esp_answer_break(&chat->answer);
    return st;
}

/* ---- the session ---- */

/* True when the session cannot go on after this failure. */
static bool is_the_end(const struct esp_chat *chat)
{
    const struct esp_embed *embed = chat->ask.embed;

    return esp_signals_stop() != 0 || ferror(stdout) ||
           (embed && (esp_embed_headless(embed) || esp_embed_n_alive(embed) == 0));
}

/* One line of input. @param failed  set when it could not be done, and that was said */
static esp_status do_line(struct esp_chat *chat, const char *line, bool *failed, struct esp_err *err)
{
    esp_status st;

    line += strspn(line, " \t");
    if (!*line)
        return ESP_OK;
    st = *line == '/' ? esp_chat_command(chat, line, err) : esp_chat_ask(chat, line, err);
    if (st == ESP_OK)
        return ESP_OK;
    if (esp_signals_stop() == SIGINT && esp_line_is_interactive(chat->line)) {
        esp_signals_forgive();
        esp_term_line(&chat->ask.term, "cancelled");
        return ESP_OK;
    }
    if (is_the_end(chat))
        return st;
    *failed = true;
    esp_term_line(&chat->ask.term, "espalier chat: %s", err->text);
    return ESP_OK;
}

static esp_status converse(struct esp_chat *chat, bool *failed, struct esp_err *err)
{
    esp_status st = ESP_OK;

    while (st == ESP_OK && !chat->quit) {
        char *line;

        st = esp_line_read(chat->line, &line, err);
        if (st == ESP_E_LIMIT || st == ESP_E_FORMAT) {
            *failed = true;
            esp_term_line(&chat->ask.term, "espalier chat: %s", err->text);
            st = ESP_OK;
            continue;
        }
        if (st || !line)
            break;
        st = do_line(chat, line, failed, err);
        free(line);
    }
    return st;
}

static esp_status open_chat(struct esp_chat *chat, struct esp_err *err)
{
    esp_status st = esp_chat_pictures(chat, chat->ask.images.at, chat->ask.images.n, false, err);

    chat->finder.model = chat->ask.where.model;
    if (st == ESP_OK)
        st = esp_finder_open(&chat->finder, &chat->ask.images, err);
    if (st == ESP_OK)
        st = esp_ask_connect(&chat->ask, NULL, err);
    if (st == ESP_OK) {
        const struct esp_line_options options = {.prompt = "> ",
                                                 .embed = chat->ask.embed,
                                                 .term = &chat->ask.term,
                                                 .kind = esp_chat_kind,
                                                 .word = esp_chat_word};
        st = esp_line_open(&chat->line, &options, err);
    }
    esp_term_clear(&chat->ask.term);
    if (st == ESP_OK && esp_line_is_interactive(chat->line)) {
        esp_signals_keep_on();
        esp_term_line(&chat->ask.term, "%u picture%s. /help lists what there is, Ctrl-D ends.",
                      chat->n_pictures, chat->n_pictures == 1 ? "" : "s");
    }
    return st;
}

static int chat_and_close(struct esp_chat *chat)
{
    struct esp_err err = {0};
    bool failed = false, interactive;
    esp_status st = open_chat(chat, &err);
    int r = 0;

    if (st == ESP_OK)
        st = converse(chat, &failed, &err);
    interactive = chat->line && esp_line_is_interactive(chat->line);
    if (st)
        r = esp_ask_failed(&chat->ask.term, help.name, &err);
    else if (failed && !interactive)
        r = ESP_EXIT_FAILED;
    esp_line_close(&chat->line);
    esp_ask_close(&chat->ask);
    esp_loc_scores_finish(&chat->scores);
    esp_findings_finish(&chat->found);
    esp_finder_close(&chat->finder);
    for (uint32_t i = 0; i < chat->n_pictures; i++)
        free_picture(&chat->picture[i]);
    return r;
}

static int check(struct esp_chat *chat)
{
    struct esp_err err;

    for (uint32_t i = 0; i < chat->ask.images.n; i++)
        if (strcmp(chat->ask.images.at[i], "-") == 0)
            return esp_args_bad(&help, "--image -: standard input is where the questions come from");
    if (esp_decoding_check(&chat->decoding, &err))
        return esp_args_bad(&help, "%s", err.text);
    return esp_ask_check(&help, &chat->ask);
}

int esp_command_chat(int argc, char **argv)
{
    static struct esp_chat chat;
    struct esp_arg where[ESP_N_CLUSTER_ARGS], input[ESP_N_INPUT_ARGS], found[ESP_N_FINDINGS_ARGS];
    struct esp_arg output[] = {
        {"verbose", 'v', ESP_ARG_COUNT, NULL,
         "Say more on standard error: the timing of each answer and the daemons' info; -vv: their debug; "
         "-vvv: their trace.",
         &chat.ask.verbose, 0, 0, false, NULL},
    };
    const struct esp_arg_group groups[] = {{"Input", input, ESP_N_INPUT_ARGS},
                                           {"Decoding", chat.decoding_args, ESP_N_DECODING_ARGS},
                                           {"Output", output, sizeof output / sizeof output[0]},
                                           {"Boxes and masks", found, ESP_N_FINDINGS_ARGS},
                                           {"Where", where, ESP_N_CLUSTER_ARGS},
                                           {NULL, NULL, 0}};
    char **rest;
    int n_rest, r;

    esp_where_args(&chat.ask.where, where);
    esp_input_args(&chat.ask, input);
    esp_findings_args(&chat.finder, found);
    found[0].help = "Show the first picture in the terminal after each answer that found something on it.";
    input[0].help = "A PNG or JPEG picture to begin with. Several: give it several times, in order.";
    esp_decoding_args(&chat.decoding, chat.decoding_args);
    for (size_t i = 0; i < ESP_N_CLUSTER_ARGS; i++)
        if (strcmp(where[i].name, "context") == 0)
            where[i].help = "Longest sequence, image tokens included. Default: four pictures (two of 896 "
                            "pixels) and 1024 tokens.";
    r = esp_args_parse(&help, groups, argc, argv, &rest, &n_rest);
    if (r == ESP_ARGS_GO_ON && n_rest > 0)
        r = esp_args_bad(&help, "'%s': no such argument; questions are typed, or come from a pipe", rest[0]);
    if (r == ESP_ARGS_GO_ON)
        r = check(&chat);
    if (r == ESP_ARGS_GO_ON) {
        esp_term_init(&chat.ask.term);
        r = chat_and_close(&chat);
    }
    esp_args_free(groups);
    return r;
}
