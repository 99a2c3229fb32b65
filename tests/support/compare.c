#include "tests/support/compare.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

struct esp_diff esp_diff_of(const float *got, const double *want, size_t rows, size_t cols)
{
    struct esp_diff d = {0};
    double error_square = 0, want_square = 0;

    for (size_t r = 0; r < rows; r++) {
        const float *g = got + r * cols;
        const double *w = want + r * cols;
        double row_square = 0;
        for (size_t c = 0; c < cols; c++) {
            if (isfinite(w[c]))
                row_square += w[c] * w[c];
        }
        want_square += row_square;
        const double scale = sqrt(row_square / (double)cols);
        for (size_t c = 0; c < cols; c++) {
            const bool finite = isfinite(g[c]) && isfinite(w[c]);
            const double error = finite ? fabs(g[c] - w[c]) : 0;
            const double relative =
                error > 0 ? error / scale : 0; /* infinite where the whole row should be 0 */
            error_square += error * error;
            if (d.n_nonfinite == 0 && (!finite || relative > d.worst)) {
                d.row = r;
                d.col = c;
            }
            if (relative > d.worst)
                d.worst = relative;
            d.n_nonfinite += !finite;
        }
    }
    if (error_square > 0)
        d.rel_l2 = sqrt(error_square) / sqrt(want_square);
    if (rows > 0 && cols > 0) {
        d.got = got[d.row * cols + d.col];
        d.want = want[d.row * cols + d.col];
    }
    return d;
}

bool esp_check_close(const char *what, const float *got, const double *want, size_t rows, size_t cols,
                     double rel_l2_tol, double row_tol)
{
    const struct esp_diff d = esp_diff_of(got, want, rows, cols);
    const bool close = d.n_nonfinite == 0 && d.rel_l2 <= rel_l2_tol && d.worst <= row_tol;

    if (!close || getenv("ESP_TEST_VERBOSE")) {
        fprintf(
            stderr,
            "%s: %s: relative L2 %.3g (tolerance %.3g), worst %.3g of its row's scale (tolerance %.3g) at "
            "[%zu,%zu] of [%zu,%zu]: got %.9g, want %.9g; %zu not finite\n",
            what, close ? "close" : "NOT CLOSE", d.rel_l2, rel_l2_tol, d.worst, row_tol, d.row, d.col, rows,
            cols, d.got, d.want, d.n_nonfinite);
    }
    return close;
}
