// Over the 8 lanes of a subgroup of CPU drivers, in one order: cheaper there than the subgroup's own.
float largest(const float v)
{
    const float a = max(max(subgroupBroadcast(v, 0), subgroupBroadcast(v, 1)),
                        max(subgroupBroadcast(v, 2), subgroupBroadcast(v, 3)));
    const float b = max(max(subgroupBroadcast(v, 4), subgroupBroadcast(v, 5)),
                        max(subgroupBroadcast(v, 6), subgroupBroadcast(v, 7)));
    return max(a, b);
}

float total(const float v)
{
    precise const float a = (subgroupBroadcast(v, 0) + subgroupBroadcast(v, 1)) +
                            (subgroupBroadcast(v, 2) + subgroupBroadcast(v, 3));
    precise const float b = (subgroupBroadcast(v, 4) + subgroupBroadcast(v, 5)) +
                            (subgroupBroadcast(v, 6) + subgroupBroadcast(v, 7));
    precise const float all = a + b;
    return all;
}
