/**
 * How far computed rows are from their float64 reference, and a verdict with the place of the worst error.
 *
 * Two measures, because each is blind to what the other sees: the relative L2 error over everything is steady
 * and fit for tight tolerances, but one wrong element in a million hardly moves it; the worst element,
 * measured by its own row's scale, finds a bad tail, row or lane.
 */
#ifndef ESP_TESTS_SUPPORT_COMPARE_H
#define ESP_TESTS_SUPPORT_COMPARE_H

#include <stdbool.h>
#include <stddef.h>

struct esp_diff {
    double rel_l2;      /* |got - want| / |want| over all rows; 0 for 0/0 */
    double worst;       /* largest |got - want| / (root mean square of that row of want); 0 for 0/0 */
    size_t row, col;    /* of the worst, or of the first that is not finite */
    double got, want;   /* there */
    size_t n_nonfinite; /* elements of got or want that are NaN or infinite; they count in neither measure */
};

/**
 * Measures.
 *
 * @param got   f32[rows, cols]
 * @param want  f64[rows, cols]
 */
struct esp_diff esp_diff_of(const float *got, const double *want, size_t rows, size_t cols);

/**
 * Are got and want close? Both tolerances must hold (INFINITY switches one off), and every number must be
 * finite. If not, one line on stderr says what, both measures with their tolerances, and the worst element;
 * with ESP_TEST_VERBOSE in the environment the line comes in any case, for finding tolerances.
 *
 * @param what       names the case, for the line
 * @param rel_l2_tol, row_tol  for esp_diff's rel_l2 and worst
 */
bool esp_check_close(const char *what, const float *got, const double *want, size_t rows, size_t cols,
                     double rel_l2_tol, double row_tol);

#endif
