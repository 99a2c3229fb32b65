#include "tests/cluster/curve_rig.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "proto/clock.h"
#include "tests/support/temp.h"

static char dir[32];

bool curve_rig_open(void)
{
    return esp_temp_make(dir, sizeof dir) == 0;
}

int curve_rig_close(void)
{
    return esp_temp_remove(dir);
}

const char *curve_path(const char *name)
{
    static char out[8][128];
    static unsigned turn;

    turn = (turn + 1) % 8;
    snprintf(out[turn], sizeof out[0], "%s/%s", dir, name);
    return out[turn];
}

void curve_keygen(const char *espalier, const char *out, const char *option, const char *name)
{
    struct child c;

    child_run(&c, espalier, (const char *[]){"keygen", "--out", curve_path(out), option, name, NULL});
    child_expect(&c, "keygen", 0, NULL, "the cluster has");
    child_finish(&c);
}

void curve_wait_for(struct child *c, const char *text)
{
    child_wait_for(c, 1, text);
}

void curve_ended(struct child *c)
{
    child_wait(c, NULL);
    assert_int_equal(c->exit, 0);
    child_finish(c);
}

void curve_end(struct child *c)
{
    kill(c->pid, SIGTERM);
    curve_ended(c);
}

void curve_compose(const char *name, const char *files)
{
    char text[512], command[400];

    snprintf(text, sizeof text, "%s", files);
    assert_int_equal(mkdir(curve_path(name), 0700), 0);
    for (char *save, *one = strtok_r(text, ",", &save); one; one = strtok_r(NULL, ",", &save)) {
        char *from = strchr(one, '=');

        assert_non_null(from);
        *from++ = '\0';
        snprintf(command, sizeof command, "cp -p %s %s/%s", curve_path(from), curve_path(name), one);
        assert_int_equal(system(command), 0);
    }
}
