// Memory as CPU drivers of the direct class read it (worker/vk_device.h). An address that is the same for all lanes is
// loaded without lanes there; put together again, eight words that lie together are a single load of a vector. Nothing
// is called, so sums stay in registers.
//
// Such a load happens even where no lane is active: after the `break` of a loop, after a `return`. So loops here end
// with their condition, and what may not be read stands in an `if`, which is skipped.
struct Eight {
    uvec4 a, b;
};
layout(buffer_reference, std430, buffer_reference_align = 16) readonly buffer esp_eights { Eight at[]; };

// Which lane this is, to be told before anything else (know_lane). What is first known within a loop and used behind it, be it the
// constant of an address that both have, is no constant there any more, and LLVM cuts the loop in two to keep it: all that a round
// loads goes through memory then, which costs a fifth. So kernels whose loop counts tell before it where their results go, load
// there what else those need, and have no second loop behind it, and none around it where they take one row or two.
bool lane_is[8];

void know_lane()
{
    [[unroll]] for (uint i = 0; i < 8; i++)
        lane_is[i] = gl_SubgroupInvocationID == i;
}

// Word `lane` of eight.
uint of_lane(const uvec4 a, const uvec4 b)
{
    uint v = a.x;
    v = lane_is[1] ? a.y : v;
    v = lane_is[2] ? a.z : v;
    v = lane_is[3] ? a.w : v;
    v = lane_is[4] ? b.x : v;
    v = lane_is[5] ? b.y : v;
    v = lane_is[6] ? b.z : v;
    return lane_is[7] ? b.w : v;
}
