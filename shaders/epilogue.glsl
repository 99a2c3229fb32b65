// What becomes of a finished sum of a product; EPI is one of ESP_EPI_* (push.h), p an esp_push_matmul.
// ESP_EPI_GEGLU pairs two columns, so its kernels call put themselves.
void put(const uint row, const uint group, const uint r, const float v)
{
    esp_floats(p.act).at[(p.y_at + row * p.y_stride) * 4 + (p.group0 + group) * 8 + r] = v;
}

// The function of ESP_EPI_GELU and ESP_EPI_SOFTCAP.
float bent(const float v)
{
    return EPI == ESP_EPI_GELU ? esp_gelu(v) : EPI == ESP_EPI_SOFTCAP ? p.cap * esp_tanh(v / p.cap) : v;
}

// The sum with what is added to it.
float whole(const uint row, const uint group, const uint r, float v)
{
    if (p.bias != ESP_NONE)
        v += p.vec.at[p.bias + group * 8 + r];
    if (EPI == ESP_EPI_ADD)
        v += esp_floats(p.act).at[(p.y_at + row * p.y_stride) * 4 + (p.group0 + group) * 8 + r];
    return v;
}

void finish(const uint row, const uint group, const uint r, const float v)
{
    put(row, group, r, bent(whole(row, group, r, v)));
}

// Whether y has such columns: its rows are padded to 32, and a kernel may take more at once.
bool fits(const uint group)
{
    return (p.group0 + group) * 8 < p.y_stride * 4;
}
