/*
 * bench-hop: what a decode hop costs on this machine's loopback, through real worker conversations whose stages take no
 * time. Prints, for chains of stages, the time from one token to the next (median; the middle 80 %), the wire (half a
 * round trip of the same message between two bare links), and what each stage adds beyond one wire.
 *
 * Usage: bench-hop [TOKENS]
 */
#include <stdio.h>
#include <stdlib.h>

#include "tests/sim/alone.h"

int main(int argc, char **argv)
{
    const int n_tokens = argc > 1 ? atoi(argv[1]) : 400;
    double first = 0;

    if (argc > 2 || n_tokens < 2 || n_tokens > 400) {
        fprintf(stderr, "usage: bench-hop [TOKENS]: 2 to 400, 400 if left out\n");
        return 2;
    }
    printf("stages  token us  (10 %%, 90 %%)       wire us  a hop beyond the wire us\n");
    for (uint32_t n = 1; n <= 16; n *= 2) {
        struct fleet f;
        struct alone m;

        fleet_start_even(&f, n, &sim_profile_default);
        alone_measure(&f, 16); /* to warm up */
        m = alone_measure(&f, (uint32_t)n_tokens);
        fleet_stop(&f);
        printf("%6u  %8.0f  (%6.0f, %6.0f)  %8.0f", n, 1e6 * m.token, 1e6 * m.p10, 1e6 * m.p90, 1e6 * m.wire);
        if (n == 1) {
            first = m.token;
            printf("\n");
        } else {
            printf("  %8.0f\n", 1e6 * ((m.token - first) / (n - 1) - m.wire));
        }
    }
    return 0;
}
