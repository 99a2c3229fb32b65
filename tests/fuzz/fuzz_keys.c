/* The text of key files, in both kinds; what is read is written and read again as the same. */
#include "fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/keys.h"

static void check(const uint8_t *text, size_t n_bytes, bool secret)
{
    struct esp_key_list list, again;
    struct esp_err err = {0};
    char line[16 + ESP_MAX_NAME + ESP_KEY_TEXT];

    if (esp_key_list_parse(&list, text, n_bytes, secret, &err) != ESP_OK) {
        if (list.at || list.n || !err.text[0])
            abort(); /* no refusal without words, and nothing left over */
        return;
    }
    for (uint32_t i = 0; i < list.n; i++) {
        char key[ESP_KEY_TEXT + 1];
        int n;

        esp_key_format(key, list.at[i].key);
        n = snprintf(line, sizeof line, "%s %s %s", secret ? "secret" : "public", list.at[i].name, key);
        if (!esp_key_name_ok(list.at[i].name) ||
            esp_key_list_parse(&again, line, (size_t)n, secret, &err) != ESP_OK || again.n != 1 ||
            !esp_key_equal(again.at[0].key, list.at[i].key))
            abort();
        esp_key_list_finish(&again);
    }
    esp_key_list_finish(&list);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes)
{
    uint8_t *text = malloc(n_bytes ? n_bytes : 1); /* of the exact size: a byte read too many is seen */

    if (!text)
        return 0;
    memcpy(text, data, n_bytes);
    check(text, n_bytes, false);
    check(text, n_bytes, true);
    free(text);
    return 0;
}
