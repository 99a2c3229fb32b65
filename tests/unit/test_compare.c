/* The verdict on computed rows: a comparison that cannot fail would make every test of a shader pass. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>

#include "tests/support/compare.h"

#define COUNT(a) (sizeof(a) / sizeof(a)[0])

static void measures_by_hand(void **state)
{
    const double want[] = {3, 4, 0, 0, 0, 6}; /* norm sqrt(61); rows' scales sqrt(25/3) and sqrt(12) */
    const float got[] = {3, 4, 1, 0, -2, 6};
    struct esp_diff d = esp_diff_of(got, want, 2, 3);
    const double l2 = sqrt(5.0 / 61), worst = 2 / sqrt(12);
    assert_true(fabs(d.rel_l2 - l2) <= 1e-15);
    assert_true(fabs(d.worst - worst) <= 1e-15); /* the larger one, though 1 / sqrt(25/3) is not far */
    assert_true(d.row == 1 && d.col == 1 && d.got == -2 && d.want == 0 && d.n_nonfinite == 0);

    const float same[] = {3, 4, 0, 0, 0, 6};
    d = esp_diff_of(same, want, 2, 3);
    assert_true(d.rel_l2 == 0 && d.worst == 0);
    d = esp_diff_of(NULL, NULL, 0, 3);
    assert_true(d.rel_l2 == 0 && d.worst == 0);
}

/* Each verdict that must be no comes from one difference alone. */
static void verdicts(void **state)
{
    enum { T = 2, D = 4 };
    static const struct {
        const char *what;
        size_t at;
        float got;
        double l2_tol, row_tol;
        bool close;
    } cases[] = {
        {"the same", 0, 1, 0, 0, true},
        {"L2 too large", 5, 1.01f, 1e-3, INFINITY, false},
        {"one element too far", 5, 1.01f, INFINITY, 1e-3, false},
        {"within both", 5, 1.01f, 1e-2, 2e-2, true},
        {"NaN", 3, NAN, INFINITY, INFINITY, false},
        {"infinity", 7, -INFINITY, INFINITY, INFINITY, false},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        double want[T * D];
        float got[T * D];
        for (size_t j = 0; j < T * D; j++)
            want[j] = got[j] = 1;
        got[cases[i].at] = cases[i].got;
        if (esp_check_close(cases[i].what, got, want, T, D, cases[i].l2_tol, cases[i].row_tol) !=
            cases[i].close)
            fail_msg("%s", cases[i].what);
    }

    const double nan_want = NAN, zero_want = 0;
    const float finite = 0, nan_got = NAN, tiny = 1e-30f;
    assert_false(esp_check_close("NaN wanted", &finite, &nan_want, 1, 1, INFINITY, INFINITY));
    assert_false(esp_check_close("NaN twice", &nan_got, &nan_want, 1, 1, INFINITY, INFINITY));
    assert_false(esp_check_close("something for nothing", &tiny, &zero_want, 1, 1, 1, 1));
    assert_true(esp_check_close("nothing for nothing", &finite, &zero_want, 1, 1, 0, 0));

    const double rows[] = {1e4, 1e4, 1, 1}; /* wrong by all of its own row's scale, by 1e-4 of the whole */
    const float bad_row[] = {1e4f, 1e4f, 1, 0};
    assert_true(esp_check_close("L2 is blind to a small row", bad_row, rows, 2, 2, 1e-3, INFINITY));
    assert_false(esp_check_close("the row's scale is not", bad_row, rows, 2, 2, INFINITY, 1e-3));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(measures_by_hand),
        cmocka_unit_test(verdicts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
