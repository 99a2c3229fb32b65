// What all kernels that begin a norm must compute to the same bits: no multiplication is fused with an addition.
float square(const float v)
{
    precise const float s = v * v;
    return s;
}

float weighted(const float v, const float w)
{
    precise const float by = 1.0 + w;
    precise const float z = v * by;
    return z;
}

float sum_of_8(const float s[8])
{
    precise const float v = ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]));
    return v;
}
