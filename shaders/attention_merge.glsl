// What a slice of positions knows of one query: the largest score m, the sum l of exp(score - m), and that of the values
// times exp(score - m). Two such are put together as in arXiv 1805.02867; one that saw nothing (m LOWEST, sums 0) changes
// no bit of the other.
//
// One workgroup may go through the slices of a query, or many may take one each and another kernel put them together:
// `precise`, because both must come to the same bits.
struct Merge {
    float old_by, new_by; // what the sums so far and the slice's are multiplied by
};

Merge merge(inout float m, inout float l, const float ms, const float ls)
{
    const float top = max(m, ms);
    const float base = top == LOWEST ? 0.0 : top;
    Merge by;
    by.old_by = esp_exp(m - base);
    by.new_by = esp_exp(ms - base);
    precise float sum = l * by.old_by + ls * by.new_by;
    l = sum;
    m = top;
    return by;
}

vec4 merged(const Merge by, const vec4 acc, const vec4 slice)
{
    precise vec4 v = acc * by.old_by + slice * by.new_by;
    return v;
}

// Where item i keeps query vector r of part y: H4 texels of sums, then one of (m, l).
uint part_at(const uint i, const uint y, const uint r)
{
    return p.parts_at + ((i * gl_NumWorkGroups.y + y) * TILE + r) * (H4 + 1);
}
