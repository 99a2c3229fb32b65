#include "model/wtype.h"

#include <string.h>

#include "model/quant.h"

static const char *const names[ESP_N_WTYPE] = {"stored", "bf16", "f16", "f32", "q8", "q4"};

const char *esp_wtype_name(enum esp_wtype type)
{
    return (unsigned)type < ESP_N_WTYPE ? names[type] : "unset";
}

bool esp_wtype_parse(enum esp_wtype *out, const char *name)
{
    for (unsigned i = 0; i < ESP_N_WTYPE; i++) {
        if (strcmp(name, names[i]) == 0) {
            *out = (enum esp_wtype)i;
            return true;
        }
    }
    return false;
}

enum esp_wtype esp_wtype_of(enum esp_dtype dtype)
{
    return dtype == ESP_BF16  ? ESP_W_BF16
           : dtype == ESP_F16 ? ESP_W_F16
           : dtype == ESP_F32 ? ESP_W_F32
           : dtype == ESP_Q8  ? ESP_W_Q8
           : dtype == ESP_Q4  ? ESP_W_Q4
                              : ESP_W_NONE;
}

bool esp_wtype_quantised(enum esp_wtype type)
{
    return type == ESP_W_Q8 || type == ESP_W_Q4;
}

size_t esp_wtype_n_bytes(enum esp_wtype type, size_t n)
{
    switch (type) {
    case ESP_W_BF16:
    case ESP_W_F16:
        return 2 * n;
    case ESP_W_F32:
        return 4 * n;
    case ESP_W_Q8:
        return n / ESP_QUANT_BLOCK * sizeof(struct esp_q8_block);
    case ESP_W_Q4:
        return n / ESP_QUANT_BLOCK * sizeof(struct esp_q4_block);
    default:
        return 0;
    }
}
