/* A file of results, after a good first line where the first byte is even. What is refused stays as it is; what is taken
 * keeps its whole lines. */
#include "tests/fuzz/fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cli/eval_results.h"

static esp_status heard(void *self, uint32_t example, const struct esp_eval_answer *answer,
                        struct esp_err *err)
{
    double sum = 0;

    ++*(uint32_t *)self;
    if (example >= 2 || !answer->text || !answer->finish)
        abort();
    for (uint32_t i = 0; i < answer->n_ids; i++)
        sum += answer->logprobs[i] + answer->ids[i];
    return sum == 1 ? esp_fail(err, ESP_E_FORMAT, "one") : ESP_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes)
{
    static const char first[] =
        "{\"espalier_eval\":1,\"data\":\"0000000000000000000000000000000000000000000000000000000000000000\","
        "\"model\":"
        "\"0000000000000000000000000000000000000000000000000000000000000000\",\"decoding\":{}}\n";
    static char prompt[] = "caption en", answer[] = "a cat", name[] = "a.png";
    static struct esp_eval_picture picture = {.name = name};
    static struct esp_eval_example examples[] = {{.line = 1, .prompt = prompt, .answer = answer},
                                                 {.line = 3, .prompt = prompt, .answer = answer}};
    const struct esp_eval_data set = {
        .examples = examples, .n_examples = 2, .pictures = &picture, .n_pictures = 1};
    struct esp_eval_header header = {.decoding = json_object()};
    struct esp_eval_results *results;
    struct esp_err err = {.text = ""};
    uint32_t n_heard = 0;
    off_t before, after;
    char path[64];
    int fd = memfd_create("results", MFD_CLOEXEC);

    if (fd < 0 || !header.decoding || n_bytes == 0)
        goto done;
    if (data[0] % 2 == 0 && write(fd, first, sizeof first - 1) != (ssize_t)(sizeof first - 1))
        abort();
    if (write(fd, data + 1, n_bytes - 1) != (ssize_t)(n_bytes - 1))
        abort();
    before = lseek(fd, 0, SEEK_END);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (esp_eval_results_open(&results, path, &set, &header, heard, &n_heard, &err)) {
        if (results || !err.text[0] || lseek(fd, 0, SEEK_END) != before)
            abort();
    } else {
        after = lseek(fd, 0, SEEK_END);
        if (data[0] % 2 == 0 && (after > before || after < (off_t)sizeof first - 1))
            abort();
        if (esp_eval_results_failure(results, 1, "why", &err) || lseek(fd, 0, SEEK_END) <= after)
            abort();
        esp_eval_results_close(&results);
    }
done:
    json_decref(header.decoding);
    if (fd >= 0)
        close(fd);
    return 0;
}
