/* The preparation thread: what nobody wants any more holds up nobody. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "coordinator/prepare.h"
#include "model/checkpoint.h"
#include "proto/link.h"
#include "tests/support/file.h"

#define TINY "tests/golden/data/tiny"

static struct esp_prepare_job *job_of(uint64_t session, const void *file, size_t n_bytes, uint32_t n)
{
    struct esp_prepare_job *job = calloc(1, sizeof *job);

    assert_non_null(job);
    job->session = session;
    job->request.kind = ESP_MSG_REQUEST;
    job->request.request = (struct esp_msg_request){.id = 1, .prompt = "caption en", .n_images = n};
    job->request.n_blobs = n;
    for (uint32_t i = 0; i < n; i++)
        job->request.blob[i] = (struct esp_blob){.data = file, .n_bytes = n_bytes};
    return job;
}

static struct esp_prepare_job *take(struct esp_prepare *p)
{
    struct esp_wait wait = {.fd = esp_prepare_fd(p)};
    struct esp_prepare_job *job;

    while (!(job = esp_prepare_take(p)))
        assert_int_equal(esp_link_wait(&wait, 1, 30000, NULL), ESP_OK);
    return job;
}

/* Jobs come back in their order. One that was dropped is not done, the others are. */
static void test_drop(void **state)
{
    enum { N = 12, DROPPED = 11 };
    struct esp_checkpoint *ck;
    struct esp_tokenizer *token;
    struct esp_prepare *p;
    size_t n_bytes;
    uint8_t *file = esp_slurp(&n_bytes, TINY "/images/scene_a.png");

    assert_int_equal(esp_checkpoint_open(&ck, TINY, NULL), ESP_OK);
    assert_int_equal(esp_tokenizer_create(&token, TINY "/tokenizer.model", NULL), ESP_OK);
    assert_int_equal(esp_prepare_create(&p, esp_checkpoint_config(ck), token, NULL), ESP_OK);
    for (uint64_t s = 1; s <= N; s++) {
        struct esp_prepare_job *job = job_of(s, file, n_bytes, ESP_MAX_BLOBS);

        esp_prepare_submit(p, &job);
        assert_null(job);
    }
    esp_prepare_drop(p, DROPPED); /* ten of 64 pictures each stand before it */
    esp_prepare_drop(p, 99);
    for (uint64_t s = 1; s <= N; s++) {
        struct esp_prepare_job *job = take(p);

        assert_int_equal(job->session, s);
        assert_int_equal(job->st, s == DROPPED ? ESP_E_CANCELLED : ESP_OK);
        if (s != DROPPED)
            assert_memory_equal(job->hash[0], job->hash[ESP_MAX_BLOBS - 1], sizeof job->hash[0]);
        esp_prepare_job_destroy(&job);
    }
    esp_prepare_destroy(&p);
    esp_tokenizer_destroy(&token);
    esp_checkpoint_destroy(&ck);
    free(file);
}

/* Ends with jobs waiting and one at work. */
static void test_end_at_work(void **state)
{
    struct esp_checkpoint *ck;
    struct esp_tokenizer *token;
    struct esp_prepare *p;
    size_t n_bytes;
    uint8_t *file = esp_slurp(&n_bytes, TINY "/images/scene_a.png");

    assert_int_equal(esp_checkpoint_open(&ck, TINY, NULL), ESP_OK);
    assert_int_equal(esp_tokenizer_create(&token, TINY "/tokenizer.model", NULL), ESP_OK);
    assert_int_equal(esp_prepare_create(&p, esp_checkpoint_config(ck), token, NULL), ESP_OK);
    for (uint64_t s = 1; s <= 50; s++) {
        struct esp_prepare_job *job = job_of(s, file, n_bytes, ESP_MAX_BLOBS);

        esp_prepare_submit(p, &job);
    }
    esp_prepare_destroy(&p);
    esp_tokenizer_destroy(&token);
    esp_checkpoint_destroy(&ck);
    free(file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_drop),
        cmocka_unit_test(test_end_at_work),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
