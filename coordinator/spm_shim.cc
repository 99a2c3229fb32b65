#include "coordinator/spm_shim.h"

#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <string>
#include <vector>

#include <sentencepiece_processor.h>

struct esp_spm {
    sentencepiece::SentencePieceProcessor processor;
};

namespace
{
/* Runs f, which returns a status of the library's (its own type or, from 0.2.2 on, Abseil's) or throws. */
template <typename F> esp_status guarded(struct esp_err *err, esp_status refused, F f)
{
    try {
        const auto status = f();
        if (status.ok())
            return ESP_OK;
        return esp_fail(err, refused, "SentencePiece: %s", std::string(status.message()).c_str());
    } catch (const std::bad_alloc &) {
        return esp_fail(err, ESP_E_NOMEM, "SentencePiece: out of memory");
    } catch (const std::exception &e) {
        return esp_fail(err, refused, "SentencePiece: %s", e.what());
    } catch (...) {
        return esp_fail(err, refused, "SentencePiece: an error without a name");
    }
}
} // namespace

esp_status esp_spm_create(struct esp_spm **out, const void *bytes, size_t n_bytes, struct esp_err *err)
{
    esp_spm *spm = nullptr;
    esp_status st;

    *out = nullptr;
    st = guarded(err, ESP_E_FORMAT, [&] {
        spm = new esp_spm;
        return spm->processor.LoadFromSerializedProto({static_cast<const char *>(bytes), n_bytes});
    });
    if (st)
        esp_spm_destroy(&spm);
    *out = spm;
    return st;
}

void esp_spm_destroy(struct esp_spm **spm)
{
    if (!spm)
        return;
    delete *spm;
    *spm = nullptr;
}

esp_status esp_spm_encode(const struct esp_spm *spm, uint32_t **ids, size_t *n_ids, const char *text,
                          size_t n_text, struct esp_err *err)
{
    *ids = nullptr;
    *n_ids = 0;
    return guarded(err, ESP_E_INTERNAL, [&] {
        std::vector<int> found;
        auto status = spm->processor.Encode({text, n_text}, &found);
        if (!status.ok())
            return status;
        *ids = static_cast<uint32_t *>(malloc((found.size() + 1) * sizeof **ids));
        if (!*ids)
            throw std::bad_alloc();
        for (size_t i = 0; i < found.size(); i++)
            (*ids)[i] = static_cast<uint32_t>(found[i]);
        *n_ids = found.size();
        return status;
    });
}

esp_status esp_spm_decode(const struct esp_spm *spm, char **text, size_t *n_text, const uint32_t *ids,
                          size_t n_ids, struct esp_err *err)
{
    *text = nullptr;
    *n_text = 0;
    return guarded(err, ESP_E_INTERNAL, [&] {
        const std::vector<int> given(ids, ids + n_ids);
        std::string found;
#ifdef ESP_SPM_ABSL
        auto status = spm->processor.Decode(absl::MakeConstSpan(given), &found);
#else
        auto status = spm->processor.Decode(given, &found);
#endif
        if (!status.ok())
            return status;
        *text = static_cast<char *>(malloc(found.size() + 1));
        if (!*text)
            throw std::bad_alloc();
        memcpy(*text, found.c_str(), found.size() + 1);
        *n_text = found.size();
        return status;
    });
}
